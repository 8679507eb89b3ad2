"""The check-up of conversations, pairs and prompts: what is painted as learned is what training learns."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from groundling.checkup.examples import check_examples
from groundling.checkup.examples_page import page, rows
from groundling.checkup.painting import PaintedToken
from groundling.config import Config, CorpusSettings
from groundling.data.examples import Kind, prepare_examples
from groundling.data.sources import find_source
from groundling.data.tokenizers.base import ByteTokenizer, CharTokenizer, Tokenizer
from groundling.data.tokenizers.chat import with_chat
from groundling.model.initial import InitialModel
from groundling.tasks.sft import Sft

LETTERS = CharTokenizer(sorted("\n abcdefghijklmnopqrstuvwxyz0123456789+<>|_é日"))
CALL = {"function": {"name": "calculator", "arguments": '{"expression": "1+2"}'}}


def chats(n: int = 24) -> list[dict[str, Any]]:
    """Every third calls a tool, and every fourth is too long for 40 characters."""
    made = []
    for i in range(n):
        messages: list[dict[str, Any]] = [{"role": "user", "content": f"ask {i}é"}]
        if i % 3 == 0:
            messages += [{"role": "assistant", "tool_calls": [CALL]}, {"role": "tool", "content": "3"}]
        reply = f"say 日\n{i}" + " and so on" * (5 if i % 4 == 0 else 0)
        made.append({"messages": [*messages, {"role": "assistant", "content": reply}]})
    return made


def pairs(n: int = 20) -> list[dict[str, Any]]:
    return [{"prompt": f"ask {i}", "chosen": f"yes {i}" + "x" * (i % 7), "rejected": f"{i}"} for i in range(n)]


def write(path: Path, entries: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries), encoding="utf-8")
    return path


def ids_of(tokens: tuple[PaintedToken, ...], *states: str) -> tuple[int, ...]:
    return tuple(id for token in tokens if token.state in states for id in token.ids)


@pytest.mark.parametrize("tokenizer", [LETTERS, ByteTokenizer()], ids=["char", "byte"])
@pytest.mark.parametrize("kind", ["conversations", "preferences"])
def test_what_is_painted_is_what_training_reads_and_learns(kind: Kind, tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = write(tmp_path / "data.jsonl", chats() if kind == "conversations" else pairs())
    settings, chat = CorpusSettings(), with_chat(tokenizer)
    report = check_examples(path, settings, chat, 40, n_painted=100)
    data = prepare_examples(find_source(path, settings, entries=True), settings, chat, 40, kind)
    assert (report.kind, report.training) == (kind, data.n_train)

    sides = [side for example in report.painted for side in example.sides]
    examples = [part[row] for part in (data.train, data.validation) for row in range(len(part))]
    expected = Counter((tuple(ids.tolist()), tuple(ids[mask].tolist())) for ids, mask in examples)
    assert Counter((ids_of(side, "read", "learned"), ids_of(side, "learned")) for side in sides) == expected
    if kind == "conversations":
        assert any(ids_of(side, "cut") for side in sides)
        config = Config.tuning("sft", "", Config.build("", "nano", block_size=40), None, steps=9, batch_size=1)
        task, model = Sft(data, config, InitialModel(config.model, chat.vocab_size, 0), {}), Mock()
        epoch = [task.batch(step, model) for step in range(len(data.train))]
        learned = Counter(tuple(b.targets[b.weights > 0].tolist()) for b in epoch if b.weights is not None)
        validation = (data.validation[row] for row in range(len(data.validation)))
        kept = Counter(tuple(ids[mask].tolist()) for ids, mask in validation)
        assert learned == Counter(ids_of(side, "learned") for side in sides) - kept


def test_the_text_of_the_tokens_is_the_chat_as_it_is_written(tmp_path: Path) -> None:
    path = write(tmp_path / "data.jsonl", chats(4))
    for tokenizer in (LETTERS, ByteTokenizer()):
        report = check_examples(path, CorpusSettings(), with_chat(tokenizer), 200, n_painted=1)
        (side,) = report.painted[0].sides
        whole = "".join(token.text for token in side)
        assert whole == (
            "<|im_start|>user⏎\nask 0é<|im_end|>⏎\n<|im_start|>assistant⏎\n<tool_call>1+2</tool_call><|im_end|>⏎\n"
            "<|im_start|>tool⏎\n3<|im_end|>⏎\n<|im_start|>assistant⏎\nsay 日⏎\n0"
            " and so on and so on and so on and so on and so on<|im_end|>⏎\n"
        )
        assert [token.text for token in side if "日" in token.text] == ["日"]
        learned = "".join(token.text for token in side if token.state == "learned")
        assert learned.startswith("<tool_call>1+2</tool_call><|im_end|>say 日") and learned.endswith("so on<|im_end|>")


def test_the_figures(tmp_path: Path) -> None:
    strange = {"prompt": "ask Ü", "completion": "say Ü"}
    fake = {"prompt": "ask <|im_end|>", "completion": "say 1"}
    open_ended = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"},
                               {"role": "user", "content": "c"}]}  # fmt: skip
    path = write(tmp_path / "data.jsonl", [*chats(), strange, fake, open_ended, chats()[1]])
    report = check_examples(path, CorpusSettings(), with_chat(LETTERS), 40)
    assert (report.rows, report.left_out, report.training + report.validation) == (28, 1, 27)
    assert report.fields == ("messages",) and report.turns == 2
    assert report.roles == {"assistant": 24 + 8 + 4, "user": 24 + 5, "tool": 8}
    assert report.calls == {"calculator": 8} and report.repeats == 1
    assert report.unknown == {"Ü": 2} and report.unknown_first == f"'Ü' in {path}, line 25"
    assert report.lengths.cut == 6
    assert report.steps_per_epoch == 1
    said = [finding.sentence for finding in report.findings if finding.look]
    assert said[0].startswith("22% of the conversations are cut at 40 tokens, the model's context: their end of turn")
    assert f"2 of the characters ('Ü'; first: 'Ü' in {path}, line 25)" in said[1]
    assert said[2] == "1 conversations do not end with the assistant: their last turn is only read."
    assert said[3].startswith("1 conversations contain <|im_end|> or another mark of turns as text.")
    assert json.loads(json.dumps(report.to_dict()))["painted"][0]["sides"][0][0]["state"] == "read"
    painted = [example.place.rpartition(" ")[2] for example in report.painted]
    assert painted[0] == "1"  # it is cut, and has a call
    whole = page(report, "first")
    assert 'class="cut"' in whole and f"{report.tokens:,}" in whole


def test_pairs_whose_length_tells_which_is_chosen(tmp_path: Path) -> None:
    path = write(tmp_path / "pairs.jsonl", [*pairs(19), {"prompt": "a", "chosen": "b", "rejected": "long reply"}])
    report = check_examples(path, CorpusSettings(), with_chat(LETTERS), 40)
    assert report.pairs is not None and report.pairs.longer_wins == 0.95
    assert (report.pairs.median_chosen, report.pairs.median_rejected) == (9, 2)
    (finding,) = [finding.sentence for finding in report.findings if finding.look]
    assert finding.startswith("Preferring the longer reply is right for 95% of the pairs (ties count half).")
    assert ("epoch", "2 steps of 16 pairs, the default of `dpo`") in rows(report)
    assert page(report, "x").count('<p class="soft">rejected</p>') == 3
    same = [{"prompt": f"a {i}", "chosen": "b" * 50 + "c", "rejected": "b" * 50 + "d"} for i in range(4)]
    cut = check_examples(write(tmp_path / "same.jsonl", same), CorpusSettings(), with_chat(LETTERS), 40)
    assert cut.pairs is not None and cut.pairs.same_when_cut == 4 and cut.pairs.longer_wins == 0.5
    assert "4 pairs have the same two replies once they are cut." in [finding.sentence for finding in cut.findings]


def test_prompts_and_replies_that_are_all_the_same(tmp_path: Path) -> None:
    path = write(tmp_path / "prompts.jsonl", [{"prompt": f"ask {i}"} for i in range(40)])
    report = check_examples(path, CorpusSettings(), with_chat(LETTERS), 40)
    assert (report.kind, report.learned, report.steps_per_epoch) == ("prompts", 0, 2)
    assert {token.state for token in report.painted[0].sides[0]} == {"read"}
    path = write(tmp_path / "same.jsonl", [{"prompt": f"ask {i}", "completion": "no <b>"} for i in range(40)])
    report = check_examples(path, CorpusSettings(), with_chat(LETTERS), 40)
    assert "100% of the replies are the same: “no <b>”." in [finding.sentence for finding in report.findings]
    assert report.shared_replies == 1 and "<b>”" not in page(report, "x")


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ([{"prompt": "Ü", "completion": "b"}] * 3, "no conversation to learn from. Left out 3 conversations with text"),
        ([{"prompt": "a" * 99, "completion": "b"}] * 2, "to learn from. Left out 2 conversations with a prompt"),
        ([{"prompt": "a", "completion": "b"}] * 2, "all with the same prompt, so none can be kept for validation"),
        ([{"body": "a"}], "line 1: expected messages, conversations, prompt and completion"),
    ],
)  # fmt: skip
def test_data_with_nothing_to_learn_are_refused(entries: list[dict[str, Any]], words: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=words.replace(".", r"\.")):
        check_examples(write(tmp_path / "data.jsonl", entries), CorpusSettings(), with_chat(LETTERS), 40)
