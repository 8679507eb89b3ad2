"""Conversations in the shapes that people's data sets have, and faults that name file, line and field."""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from groundling.config import CorpusSettings
from groundling.data.conversations import Conversation, Message, Preference, Row, ToolCall, read_conversations
from groundling.data.sources import find_source

S, U, A, T = (lambda text, role=role: Message(role, text) for role in ("system", "user", "assistant", "tool"))
HI = (U("Hi"), A("Hello"))
CALL = ToolCall("find", '{"q": "é", "n": 3}')


def read(path: Path) -> list[Row]:
    return list(read_conversations(find_source(path, entries=True), CorpusSettings()))


def rows_of(folder: Path, *entries: Any, said: list[str] | None = None, **settings: Any) -> list[Row]:
    path = folder / "chats.jsonl"
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries), encoding="utf-8")
    chosen, notes = CorpusSettings(**settings), said if said is not None else []
    return list(read_conversations(find_source(path, chosen, entries=True), chosen, notes.append))


SHAPES: dict[str, tuple[dict[str, Any], tuple[Message, ...]]] = {
    "OpenAI": ({"messages": [{"role": "user", "content": "Hi"}, {"role": "Assistant", "content": "Hello"}]}, HI),
    "OpenAI, parts": (
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "H"}, {"type": "text", "text": "i"}]},
                      {"role": "assistant", "content": "Hello", "weight": 1}]}, HI,
    ),
    "OpenAI, tools": (
        {"messages": [
            {"role": "developer", "content": "S"}, {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": None, "tool_calls": [
                {"id": "1", "type": "function", "function": {"name": "find", "arguments": '{"q":"é","n":3}'}}]},
            {"role": "tool", "tool_call_id": "1", "content": "x"}, {"role": "assistant", "content": "Hello"}]},
        (S("S"), U("Hi"), Message("assistant", "", (CALL,)), T("x"), A("Hello")),
    ),
    "OpenAI, functions": (
        {"messages": [
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": "", "function_call": {"name": "find", "arguments": {"q": "é", "n": 3}}},
            {"role": "function", "name": "find", "content": ""}]},
        (U("Hi"), Message("assistant", "", (CALL,)), T("")),
    ),
    "ShareGPT, OpenHermes": (
        {"system_prompt": None, "conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]},
        HI,
    ),
    "ShareGPT, tools": (
        {"system": "S", "tools": '[{"name": "find"}]', "conversations": [
            {"from": "human", "value": "Hi"},
            {"from": "function_call", "value": '{"name": "find", "arguments": {"q": "é", "n": 3}}'},
            {"from": "observation", "value": "[1]"}, {"from": "gpt", "value": "Hello"}]},
        (S('S\n\nTools:\n{"name": "find"}'), U("Hi"), Message("assistant", "", (CALL,)), T("[1]"), A("Hello")),
    ),
    "Hermes, calls in the text": (
        {"conversations": [
            {"from": "human", "value": "Hi"},
            {"from": "gpt",
             "value": 'So\n<tool_call>\n{"name": "find", "arguments": {"q": "é", "n": 3}}\n</tool_call>'}]},
        (U("Hi"), Message("assistant", "So", (CALL,))),
    ),
    "Capybara": ({"conversation": [{"input": "Hi", "output": "Hello"}]}, HI),
    "UltraChat": ({"prompt": "Hi", "prompt_id": "7", "messages": [{"role": "user", "content": "Hi"},
                                                                  {"role": "assistant", "content": "Hello"}]}, HI),
    "Alpaca": ({"instruction": "Hi", "input": "", "output": "Hello", "text": "Below is an instruction"}, HI),
    "Alpaca, input": ({"instruction": "Add", "input": "1 2", "output": "3"}, (U("Add\n\n1 2"), A("3"))),
    "Alpaca, history": (
        {"instruction": "c", "input": "", "output": "d", "system": "S", "history": [["a", "b"]]},
        (S("S"), U("a"), A("b"), U("c"), A("d")),
    ),
    "Dolly": ({"instruction": "Hi", "context": "C", "response": "Hello", "category": "x"}, (U("Hi\n\nC"), A("Hello"))),
    "prompt and completion": ({"prompt": "Hi", "completion": "Hello"}, HI),
    "prompt and completion, messages": (
        {"prompt": [{"role": "user", "content": "Hi"}], "completion": [{"role": "assistant", "content": "Hello"}]}, HI,
    ),
    "a reply that is JSON": ({"prompt": "Hi", "completion": '[{"a": 1}]'}, (U("Hi"), A('[{"a": 1}]'))),
    "GSM8K": ({"question": "1+1?", "answer": "1+1=2\n#### 2"}, (U("1+1?"), A("1+1=2\n#### 2"))),
    "a number": ({"question": "1+1?", "answer": 2}, (U("1+1?"), A("2"))),
    "OpenOrca": ({"id": "1", "system_prompt": "S", "question": "Hi", "response": "Hello"}, (S("S"), *HI)),
    "MetaMath": ({"type": "x", "query": "Hi", "response": "Hello"}, HI),
    "xLAM": (
        {"id": 1, "query": "Hi", "answers": '[{"name": "find", "arguments": {"q": "é", "n": 3}}]',
         "tools": '[{"name": "find", "parameters": {}}]'},
        (S('Tools:\n{"name": "find", "parameters": {}}'), U("Hi"), Message("assistant", "", (CALL,))),
    ),
    "a prompt": ({"prompt": "Hi", "answer_key": "7"}, (U("Hi"),)),
    "a prompt, messages": ({"messages": [{"role": "user", "content": "Hi"}]}, (U("Hi"),)),
    "Guanaco": ({"text": "### Human: Hi### Assistant: x### Human: a"}, (U("Hi### Assistant: x### Human: a"),)),
    "Guanaco, lines": ({"text": "### Human: Hi\n### Assistant: Hello"}, HI),
    "ChatML as text": ({"text": "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello<|im_end|>\n"}, HI),
    "text": ({"text": "Once upon a time."}, (A("Once upon a time."),)),
}  # fmt: skip


@pytest.mark.parametrize(("entry", "messages"), SHAPES.values(), ids=list(SHAPES))
def test_a_conversation_is_recognized_by_its_keys(
    entry: dict[str, Any], messages: tuple[Message, ...], tmp_path: Path
) -> None:
    assert rows_of(tmp_path, entry) == [Conversation(messages, f"{tmp_path / 'chats.jsonl'}, line 1")]


Side = tuple[Message, ...]
PAIRS: dict[str, tuple[dict[str, Any], tuple[Side, Side, Side]]] = {
    "texts": ({"prompt": "Hi", "chosen": "Hello", "rejected": "Go"}, ((U("Hi"),), (A("Hello"),), (A("Go"),))),
    "Orca": (
        {"system": "S", "question": "Hi", "chosen": "Hello", "rejected": "Go"},
        ((S("S"), U("Hi")), (A("Hello"),), (A("Go"),)),
    ),
    "UltraFeedback": (
        {"prompt": "Hi", "messages": [], "score_chosen": 8.0,
         "chosen": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}],
         "rejected": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Go"}]},
        ((U("Hi"),), (A("Hello"),), (A("Go"),)),
    ),
    "HH-RLHF": (
        {"chosen": "\n\nHuman: Hi\n\nAssistant: Yes?\n\nHuman: Hm\n\nAssistant: Hello",
         "rejected": "\n\nHuman: Hi\n\nAssistant: Yes?\n\nHuman: Hm\n\nAssistant: Go "},
        ((U("Hi"), A("Yes?"), U("Hm")), (A("Hello"),), (A("Go"),)),
    ),
    "messages": (
        {"prompt": [{"role": "user", "content": "Hi"}], "chosen": [{"role": "assistant", "content": "Hello"}],
         "rejected": [{"role": "assistant", "content": "Go"}]},
        ((U("Hi"),), (A("Hello"),), (A("Go"),)),
    ),
    "ShareGPT": (
        {"conversations": [{"from": "human", "value": "Hi"}], "chosen": {"from": "gpt", "value": "Hello"},
         "rejected": {"from": "gpt", "value": "Go"}},
        ((U("Hi"),), (A("Hello"),), (A("Go"),)),
    ),
}  # fmt: skip


@pytest.mark.parametrize(("entry", "parts"), PAIRS.values(), ids=list(PAIRS))
def test_a_pair_is_split_into_its_prompt_and_two_replies(
    entry: dict[str, Any], parts: tuple[Side, Side, Side], tmp_path: Path
) -> None:
    assert rows_of(tmp_path, entry) == [Preference(*parts, f"{tmp_path / 'chats.jsonl'}, line 1")]


FAULTS: dict[str, tuple[Any, str]] = {
    "no object": ("text", "expected an object with messages, not text."),
    "unknown keys": ({"a": 1, "b": 2}, "but it has: a, b. Rename its fields, or name the one with the messages with "
                                       "--field."),
    "empty": ({}, "but it has: nothing."),
    "role": ({"messages": [{"role": "user", "content": "a"}, {"role": "judge", "content": "b"}]},
             "expected messages[1].role to be system, user, assistant or tool, not 'judge'."),
    "no role": ({"conversations": [{"value": "a"}]}, "expected conversations[0].from to be system, user"),
    "null": ({"messages": [{"role": "user", "content": None}]},
             "expected messages[0].content to be text, but it is missing or null."),
    "number": ({"prompt": "a", "completion": 0.5}, "expected completion to be text, not a number."),
    "image": ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}]},
              "expected messages[0].content to be text, but a part of it is image_url."),
    "no list": ({"messages": "a"}, "expected messages to be a list of messages, not text."),
    "no message": ({"messages": ["a"]}, "expected messages[0] to be a message with role and content, not text."),
    "half a pair": ({"prompt": "a\ud800"}, "prompt has half of a UTF-16 pair"),
    "arguments": ({"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "x"}}]}]},
                  "expected messages[0].tool_calls[0] to be a call with a name and arguments"),
    "user's call": ({"messages": [{"role": "user", "content": "a", "tool_calls": [{"name": "f"}]}]},
                    "messages[0] has tool calls, but only the assistant calls tools"),
    "weight": ({"messages": [{"role": "assistant", "content": "a", "weight": 0}]}, "messages[0].weight is 0"),
    "KTO": ({"prompt": "a", "completion": "b", "label": True}, "a completion with a label is not a pair. Give chosen"),
    "two prompts": ({"chosen": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}],
                     "rejected": [{"role": "user", "content": "c"}, {"role": "assistant", "content": "d"}]},
                    "expected chosen and rejected to be replies to the same prompt"),
    "no prompt": ({"chosen": "a", "rejected": "b"}, "expected chosen and rejected to be replies to the same prompt"),
    "history": ({"instruction": "a", "output": "b", "history": [["a"]]}, "expected history[0] to be two texts"),
}  # fmt: skip


@pytest.mark.parametrize(("entry", "fault"), FAULTS.values(), ids=list(FAULTS))
def test_a_fault_names_file_line_and_field(entry: Any, fault: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"chats\.jsonl, line 2: ") as caught:
        rows_of(tmp_path, {"prompt": "a"}, entry)
    assert fault in str(caught.value)


def test_what_is_left_out_or_changed_is_counted_with_its_first_place(tmp_path: Path) -> None:
    said = list[str]()
    rows = rows_of(
        tmp_path,
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": " "}]},
        {"conversations": [{"from": "system", "value": ""}, {"from": "human", "value": "a"},
                           {"from": "human", "value": "b"}, {"from": "gpt", "value": "c"}]},
        {"conversations": [{"from": "gpt", "value": "a"}, {"from": "human", "value": "b"}]},
        {"messages": []},
        {"prompt": "a", "chosen": "b", "rejected": "b"},
        {"prompt": "a", "chosen": "b", "rejected": ""},
        {"text": "Once."},
        said=said,
    )  # fmt: skip
    assert [row.messages for row in rows if isinstance(row, Conversation)] == [
        (U("a\n\nb"), A("c")), (A("a"), U("b")), (A("Once."),)
    ]  # fmt: skip
    assert len(rows) == 3
    place = f"{tmp_path / 'chats.jsonl'}, line"
    assert said == [
        f"Left out conversations with an empty message: 2 (first: {place} 1).",
        f"Conversations with turns of the same role, joined by an empty line: 1 (first: {place} 2).",
        f"Conversations that the assistant begins: 1 (first: {place} 3).",
        f"Left out entries without text: 1 (first: {place} 4).",
        f"Left out pairs whose replies are the same: 1 (first: {place} 5).",
        f"Texts without a prompt, which the assistant writes: 1 (first: {place} 7).",
    ]


def test_every_format_is_read(tmp_path: Path) -> None:
    entries = [{"question": "Hi", "answer": "Hello"}, {"question": "a,\nb", "answer": "12"}]
    expected = [HI, (U("a,\nb"), A("12"))]
    (tmp_path / "a.json").write_text(json.dumps(entries, indent=1))
    (tmp_path / "b.json").write_text(json.dumps(entries[0], indent=1))  # one object
    (tmp_path / "c.jsonl.gz").write_bytes(gzip.compress("\n".join(map(json.dumps, entries)).encode("utf-16")))
    with (tmp_path / "d.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["id", "question", "answer"], *([i, *e.values()] for i, e in enumerate(entries))])
    (tmp_path / "e.jsonl").write_text(json.dumps(entries[0]))
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    messages = [[{"role": m.role, "content": m.content, "name": None} for m in row] for row in expected]
    parquet.write_table(pyarrow.table({"messages": messages, "score": [1, 2]}), tmp_path / "f.parquet")
    for name, many in {"a.json": 2, "b.json": 1, "c.jsonl.gz": 2, "d.csv": 2, "e.jsonl": 1, "f.parquet": 2}.items():
        rows = read(tmp_path / name)
        assert [row.messages for row in rows if isinstance(row, Conversation)] == expected[:many], name
    assert read(tmp_path / "f.parquet")[1].place.endswith("f.parquet, row 2")
    (tmp_path / "notes.txt").write_text("Not a chat.")
    assert len(read(tmp_path)) == 10  # the folder, without the notes
    with pytest.raises(ValueError, match=r"notes\.txt is plain text, not conversations in JSON Lines"):
        read(tmp_path / "notes.txt")
    (tmp_path / "blank.jsonl").write_text("\n\n")
    with pytest.raises(ValueError, match=r"blank\.jsonl is empty\.$"):
        read(tmp_path / "blank.jsonl")


def test_a_column_of_csv_may_hold_messages_as_json(tmp_path: Path) -> None:
    messages = json.dumps([{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}])
    with (tmp_path / "a.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["id", "messages"], [1, messages]])
    assert read(tmp_path / "a.csv") == [Conversation(HI, f"{tmp_path / 'a.csv'}, line 2")]


def test_field_names_the_messages(tmp_path: Path) -> None:
    entry = {"data": {"turns": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]}}
    (row,) = rows_of(tmp_path, entry, field="data.turns")
    assert isinstance(row, Conversation) and row.messages == HI


def test_broken_json_names_the_line(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"prompt": "a"}\n{"prompt": \n')
    with pytest.raises(ValueError, match=r"a\.jsonl, line 2 is not valid JSON"):
        read(tmp_path / "a.jsonl")
