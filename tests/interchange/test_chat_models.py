"""Exports of models that were tuned on conversations: the other engine renders the same chats and replies the same."""

from __future__ import annotations

import io
import re
from contextlib import chdir, redirect_stdout
from pathlib import Path

import numpy as np
import pytest
from small import QWEN3_PARTS
from transformers import AutoModelForCausalLM, AutoTokenizer

import groundling
from foreign_tokenizers import like_llama2, written
from groundling.config import ModelSettings
from groundling.data.tokenizers.base import ByteTokenizer, CharTokenizer, Tokenizer
from groundling.data.tokenizers.bpe import BpeTokenizer
from groundling.data.tokenizers.chat import ChatTokenizer, with_chat
from groundling.interchange import gguf, huggingface
from groundling.interchange.parity import Mismatch, ParityInputs, ParityReport, check_parity
from groundling.run.run import Run
from tuned import GREETING, SUM, chats, tuned
from untrained import untrained

SETTINGS = ModelSettings(block_size=48, n_layer=1, n_head=2, n_embd=32, **QWEN3_PARTS)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("tuned")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GROUNDLING_CACHE", str(folder / "cache"))
        return tuned(folder)


@pytest.fixture(scope="module")
def exported(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported") / "tuned"
    made = groundling.export(run, to="huggingface", out=folder)
    assert made["proof"]["chats"] == 8
    return folder


def test_transformers_replies_and_stops_by_itself(run: Run, exported: Path) -> None:
    assert isinstance(run.tokenizer, ChatTokenizer)
    tokenizer = AutoTokenizer.from_pretrained(exported)
    model = AutoModelForCausalLM.from_pretrained(exported)
    end = run.tokenizer.end_of_turn_id
    assert model.generation_config.eos_token_id == [end] and tokenizer.eos_token_id == end
    for chat, reply in ((GREETING, "Hello, you."), (SUM, "<tool_call>38+47</tool_call>")):
        inputs = tokenizer.apply_chat_template(
            chat[:1], add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        written = model.generate(**inputs, max_new_tokens=60, do_sample=False)[0, inputs["input_ids"].shape[1] :]
        assert written[-1] == end and tokenizer.decode(written, skip_special_tokens=True) == reply


def test_the_template_marks_what_the_assistant_wrote(run: Run, exported: Path) -> None:
    from groundling.data.conversations import messages_of

    assert isinstance(run.tokenizer, ChatTokenizer)
    chat = [*GREETING, *GREETING]
    made = AutoTokenizer.from_pretrained(exported).apply_chat_template(
        chat, return_dict=True, return_assistant_tokens_mask=True
    )
    rendered = run.tokenizer.render(messages_of(chat))
    assert made["input_ids"] == rendered.ids
    assert made["assistant_masks"] == [int(learned) for learned in rendered.learned]


def test_an_export_is_imported_with_its_template(run: Run, exported: Path, tmp_path: Path) -> None:
    again = groundling.import_model(exported, out=tmp_path)
    assert again.tokenizer == run.tokenizer
    assert again.chat(GREETING[:1], temperature=0) == "Hello, you."


def test_the_card_tells_how_it_was_made_and_how_to_chat(run: Run, exported: Path) -> None:
    card = (exported / "README.md").read_text(encoding="utf-8")
    (parent,) = run.record.lineage
    assert f"1. pretraining: run parent, on text, up to step 2. SHA-256 of its weights: {parent.weights}\n" in card
    assert "\n2. sft: this run, on chats\n" in card
    assert "It is not trained to answer" not in card and "replies to messages" in card
    for code in re.findall(r"```python\n(.*?)```", card, re.DOTALL):
        with chdir(exported), redirect_stdout(io.StringIO()) as out:
            exec(code, {})
        assert out.getvalue().strip()


def test_a_tuned_foreign_model_comes_back_with_its_markup(prose: str, tmp_path: Path) -> None:
    tokenizer = with_chat(Tokenizer.load(written(tmp_path / "theirs", like_llama2(prose))))
    (tmp_path / "export").mkdir()
    huggingface.write(tmp_path / "export", untrained(SETTINGS, tokenizer.vocab_size, 0.2), tokenizer)
    again = groundling.import_model(tmp_path / "export", out=tmp_path / "runs").tokenizer
    assert isinstance(again, ChatTokenizer) and again.end_ids == tokenizer.end_ids
    for chat in chats():
        assert again.render(chat) == tokenizer.render(chat)


def tokenizers() -> list[Tokenizer]:
    letters = CharTokenizer(sorted(set("It's 12345 times. (end)")), end_of_text=True)
    bpe = BpeTokenizer.fit(["the times of the end, it's 12345 times " * 20], 300)
    return [letters, ByteTokenizer(), bpe]


def proven(folder: Path, tokenizer: Tokenizer, to: str) -> ParityReport:
    model = untrained(SETTINGS, tokenizer.vocab_size, 0.2)
    if to == "gguf":
        gguf.write(folder, model, tokenizer, None)
    else:
        huggingface.write(folder, model, tokenizer)
    engine = gguf.engine(folder, model, tokenizer) if to == "gguf" else huggingface.Transformers(folder)
    windows = np.random.default_rng(1).integers(tokenizer.vocab_size, size=(1, 17))
    return check_parity(model, tokenizer, engine, ParityInputs(windows, "", "random tokens"), rounded=False)


@pytest.mark.parametrize("tokenizer", tokenizers(), ids=lambda tokenizer: tokenizer.kind)
@pytest.mark.parametrize("to", ["huggingface", "gguf"])
def test_every_tokenizer_renders_the_same_chats(tokenizer: Tokenizer, to: str, tmp_path: Path) -> None:
    if to == "gguf":
        pytest.importorskip("llama_cpp")
    assert proven(tmp_path, with_chat(tokenizer), to).chats >= 6  # characters have no letters for JSON


def test_a_template_that_gives_other_ids_is_not_published(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert isinstance(run.tokenizer, ChatTokenizer)
    template = run.tokenizer.template.replace("'<|im_end|>'", "'<|im_end|> '")
    monkeypatch.setitem(vars(run.tokenizer), "template", template)
    with pytest.raises(Mismatch, match="its tokenizer gives other ids from token"):
        groundling.export(run, to="huggingface", out=tmp_path / "export")
    assert not list(tmp_path.glob("*export*"))


def test_llama_cpp_replies_the_same(run: Run, tmp_path: Path) -> None:
    llama_cpp = pytest.importorskip("llama_cpp")
    made = groundling.export(run, to="gguf", out=tmp_path / "export")
    assert made["proof"]["chats"] == 8
    llama = llama_cpp.Llama(str(tmp_path / "export" / "model.gguf"), n_ctx=192, verbose=False)
    for chat, reply in ((GREETING, "Hello, you."), (SUM, "<tool_call>38+47</tool_call>")):
        answer = llama.create_chat_completion(chat[:1], max_tokens=60, temperature=0.0, repeat_penalty=1.0)
        assert answer["choices"][0]["message"]["content"] == reply
        assert answer["choices"][0]["finish_reason"] == "stop"


def test_a_gguf_file_names_the_template_and_the_ends(run: Run, tmp_path: Path) -> None:
    from gguf import GGUFReader

    assert isinstance(run.tokenizer, ChatTokenizer)
    gguf.write(tmp_path, run.model, run.tokenizer, None)
    reader = GGUFReader(tmp_path / "model.gguf")

    def field(name: str) -> object:
        return reader.fields[f"tokenizer.{name}"].contents()

    end = run.tokenizer.end_of_turn_id
    assert (field("ggml.eot_token_id"), field("ggml.eos_token_id")) == (end, end)  # no text ends by itself
    assert "<|im_start|>" in str(field("chat_template")) and "generation %}" not in str(field("chat_template"))
    tokens, types = field("ggml.tokens"), field("ggml.token_type")
    assert isinstance(tokens, list) and isinstance(types, list)
    assert len(tokens) == run.tokenizer.vocab_size  # none was added
    kinds = dict(zip(tokens, types, strict=True))
    assert kinds["<|im_start|>user\n"] == kinds["<|im_end|>"] == 3 and kinds["<tool_call>"] == 4
    assert "<|im_start|>{{ .Role }}\n{{ .Content }}<|im_end|>\n{{ end }}" in (tmp_path / "Modelfile").read_text()
