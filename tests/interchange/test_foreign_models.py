"""Whole models as people own them: an architecture with the tokenizer of its family, used and exported."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from small import TINY_QWEN3, saved

import groundling
from foreign_tokenizers import like_llama2, like_llama3, like_smollm, written
from groundling.data.conversations import Message
from groundling.data.tokenizers.base import ByteTokenizer, CharTokenizer, Tokenizer
from groundling.data.tokenizers.chat import ChatTokenizer, with_chat
from groundling.run.run import Run

NAMES = {
    "llama2": {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "add_bos_token": True,
               "tokenizer_class": "PreTrainedTokenizerFast"},
    "llama3": {"bos_token": "<|begin_of_text|>", "eos_token": "<|end_of_text|>",
               "tokenizer_class": "PreTrainedTokenizerFast"},
    "smollm": {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>", "tokenizer_class": "GPT2Tokenizer"},
}  # fmt: skip
MAKERS = {"llama2": like_llama2, "llama3": like_llama3, "smollm": like_smollm}
START = {"llama2": [1], "llama3": [0], "smollm": []}


def model_of(folder: Path, name: str, prose: str, **settings: Any) -> Any:
    """A Llama in the folder, with more rows in its embedding than its tokenizer has tokens."""
    theirs = saved(folder, ByteTokenizer(), "Llama", **TINY_QWEN3 | {"vocab_size": 704} | settings)
    written(folder, MAKERS[name](prose), **NAMES[name])
    return theirs


@pytest.mark.parametrize("name", MAKERS)
def test_it_writes_what_transformers_writes_and_is_exported(name: str, prose: str, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    theirs = model_of(tmp_path / "theirs", name, prose)
    run = groundling.import_model(tmp_path / "theirs", name="mine")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "theirs")
    prompt, size = "The statement of", run.tokenizer.vocab_size
    ids = tokenizer(prompt, return_tensors="pt").input_ids
    assert ids[0].tolist() == run.prompt_ids(prompt)
    assert run.prompt_ids("") == START[name] or START[name] == []
    written_ids: list[int] = ids[0].tolist()
    for _ in range(16):  # among the tokens that exist
        with torch.no_grad():
            written_ids.append(int(theirs(torch.tensor([written_ids])).logits[0, -1, :size].argmax()))
    new, end = written_ids[ids.size(1) :], run.tokenizer.end_of_text_id
    new = new[: new.index(end)] if end in new else new
    expected = run.tokenizer.decode_bytes(new).decode("utf-8", "replace")
    assert run.generate(prompt, max_new_tokens=16, temperature=0) == expected
    groundling.export(run, to="huggingface", out=tmp_path / "export")
    again = AutoTokenizer.from_pretrained(tmp_path / "export")
    assert again(prompt).input_ids == ids[0].tolist()
    assert again.eos_token == NAMES[name]["eos_token"]
    made = groundling.export(run, to="gguf", out=tmp_path / "gguf")
    assert made["proof"]["encoded_tokens"] is None or made["proof"]["encoded_tokens"] > 50  # without llama.cpp


def test_documents_begin_with_its_start_token(prose: str, tmp_path: Path) -> None:
    model_of(tmp_path / "theirs", "llama2", prose)
    run = groundling.import_model(tmp_path / "theirs", name="mine")
    (tmp_path / "mine.txt").write_text(prose[:5000], encoding="utf-8")
    loss = run.evaluate("mine.txt")
    assert loss["tokens"] == len(run.prompt_ids(prose[:5000]))  # the end is one more, and the first is not predicted
    further = groundling.train(
        "mine.txt", init_from="mine", steps=2, batch_size=2, eval_tokens=256, on_event=lambda _: None, device="cpu"
    )
    assert further.tokenizer == run.tokenizer
    assert isinstance(further, Run)
    assert further.prompt_ids("The")[0] == 1


def test_the_end_of_texts_comes_from_the_generation_config(prose: str, tmp_path: Path) -> None:
    model_of(tmp_path / "theirs", "llama3", prose)
    notices: list[str] = []

    def imported(name: str, **generation: Any) -> Tokenizer:
        (tmp_path / "theirs" / "generation_config.json").write_text(json.dumps(generation))
        notices.clear()
        return groundling.import_model(tmp_path / "theirs", name=name, notice=notices.append).tokenizer

    assert imported("a").end_of_text_id == 1
    assert imported("b", eos_token_id=2).end_of_text_id == 2
    assert imported("c", eos_token_id=[2, 1]).end_ids == (1, 2)
    assert notices == ["Dropped 4 vocabulary rows that no token uses."]
    run = groundling.load("c")
    assert run.tokenizer.end_ids == (1, 2)
    groundling.export(run, to="huggingface", out=tmp_path / "export")
    assert json.loads((tmp_path / "export" / "config.json").read_text())["eos_token_id"] == [1, 2]


def test_added_tokens_without_a_row_are_dropped(prose: str, tmp_path: Path) -> None:
    folder, notices = tmp_path / "theirs", list[str]()
    model_of(folder, "smollm", prose, vocab_size=700)
    (folder / "added_tokens.json").write_text(json.dumps({"[PAD]": 700, "<|extra|>": 701}))
    assert Tokenizer.load(folder).vocab_size == 702
    run = groundling.import_model(folder, name="mine", notice=notices.append)
    assert run.tokenizer.vocab_size == 700
    assert notices == ["Dropped 2 added tokens without a row in the embedding: [PAD], <|extra|>."]
    model_of(folder, "smollm", prose, vocab_size=690)
    with pytest.raises(ValueError, match="the tokenizer has 700 tokens, but the model only 690"):
        groundling.import_model(folder, name="other")
    model_of(folder, "smollm", prose, vocab_size=702)
    notices.clear()
    assert groundling.import_model(folder, name="all", notice=notices.append).tokenizer.vocab_size == 702
    assert notices == []


def test_a_chat_template_comes_with_the_model(prose: str, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    model_of(tmp_path / "theirs", "llama3", prose)
    template = (
        "{{ bos_token }}{% for m in messages %}{{ m.role + ': ' + m.content | trim + '<|eot_id|>\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    )
    (tmp_path / "theirs" / "chat_template.jinja").write_text(template)
    run = groundling.import_model(tmp_path / "theirs", name="mine")
    tokenizer = run.tokenizer
    assert isinstance(tokenizer, ChatTokenizer) and tokenizer.template == template and not tokenizer.markup
    theirs = AutoTokenizer.from_pretrained(tmp_path / "theirs")
    ids = theirs.apply_chat_template([{"role": "user", "content": " The statement "}], return_dict=True)["input_ids"]
    assert tokenizer.render([Message("user", " The statement ")]).ids == ids
    assert tokenizer.end_of_turn_id == theirs.convert_tokens_to_ids("<|eot_id|>")


def test_a_template_without_tokens_for_its_markup_is_left_out(prose: str, tmp_path: Path) -> None:
    model_of(tmp_path / "theirs", "llama2", prose)
    (tmp_path / "theirs" / "chat_template.jinja").write_text("{% for m in messages %}{{ m.content }}\n{% endfor %}")
    said = list[str]()
    run = groundling.import_model(tmp_path / "theirs", name="mine", notice=said.append)
    assert not isinstance(run.tokenizer, ChatTokenizer)
    assert any("own chat template is not used: its chat template ends the assistant's turn with no" in s for s in said)


@pytest.mark.parametrize("base", [CharTokenizer(sorted("\n abc")), ByteTokenizer()], ids=["char", "byte"])
def test_our_own_chat_tokenizer_comes_back_as_it_was(base: Tokenizer, tmp_path: Path) -> None:
    tokenizer = with_chat(base)
    saved(tmp_path / "theirs", tokenizer, "Llama", **TINY_QWEN3)
    assert groundling.import_model(tmp_path / "theirs", name="mine").tokenizer == tokenizer
