"""GGUF exports, opened in llama.cpp if it is installed, and always read back."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from small import QWEN3_PARTS

import groundling
from groundling.config import ModelSettings
from groundling.data.tokenizers.base import ByteTokenizer, CharTokenizer, Tokenizer
from groundling.interchange import gguf
from groundling.interchange.parity import Mismatch, ParityInputs, ParityReport, check_parity
from groundling.model.gpt import GPT
from groundling.run.run import Run

GPT2 = ModelSettings(block_size=48, n_layer=2, n_head=2, n_embd=32)
QWEN3 = ModelSettings(block_size=48, n_layer=2, n_head=4, n_kv_head=2, n_embd=32, head_size=12, **QWEN3_PARTS)
TEXT = "It's “12 345”:  \n\n\t don't — 語😀, ’tis x² = 4…\r\n  (end) "


def random_model(settings: ModelSettings, tokenizer: Tokenizer) -> GPT:
    torch.manual_seed(0)
    model = GPT(settings, tokenizer.vocab_size).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


def proven(folder: Path, model: GPT, tokenizer: Tokenizer, quantize: str | None = None) -> ParityReport:
    gguf.write(folder, model, tokenizer, quantize)
    windows = np.random.default_rng(1).integers(tokenizer.vocab_size, size=(2, 49))
    about = ParityInputs(windows, TEXT * 3, "random tokens")
    return check_parity(model, tokenizer, gguf.engine(folder, model, tokenizer), about, rounded=quantize is not None)


@pytest.mark.parametrize("tie_head", [True, False])
@pytest.mark.parametrize("ends", [True, False])
@pytest.mark.parametrize("settings", [GPT2, QWEN3], ids=["gpt2", "qwen3"])
def test_llama_cpp_computes_the_same(settings: ModelSettings, ends: bool, tie_head: bool, tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp")
    settings = ModelSettings(**{**vars(settings), "tie_head": tie_head})
    tokenizer = CharTokenizer(sorted(set(TEXT)), end_of_text=ends)
    proof = proven(tmp_path, random_model(settings, tokenizer), tokenizer)
    assert proof.engine.startswith("llama.cpp")
    assert proof.encoded_tokens == 3 * len(TEXT)
    assert proof.greedy_same == proof.greedy_tokens == 36


def test_llama_cpp_leaves_out_what_a_model_of_characters_does_not_know(tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp")
    tokenizer = CharTokenizer(sorted(set(TEXT) - set("é語")))
    model = random_model(GPT2, tokenizer)
    gguf.write(tmp_path, model, tokenizer, None)
    engine = gguf.engine(tmp_path, model, tokenizer)
    text = "誤語 “é” – Ω ’😀🙂"  # some share their first bytes with known characters
    assert engine.encode(text) == tokenizer.encode(text, "skip")
    assert engine.encode("<|endoftext|>") == tokenizer.encode("<|endoftext|>", "skip")  # as text


@pytest.mark.parametrize("quantize", [None, "q8_0"])
def test_llama_cpp_reads_bytes(quantize: str | None, tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp")
    proof = proven(tmp_path, random_model(QWEN3, ByteTokenizer()), ByteTokenizer(), quantize)
    assert proof.encoded_tokens == 3 * len(TEXT.encode())
    assert (proof.tolerance is None) == (quantize is not None)


def test_llama_cpp_writes_what_groundling_writes(pieces: Run, tmp_path: Path) -> None:
    llama_cpp = pytest.importorskip("llama_cpp")
    made = groundling.export(pieces, to="gguf", out=tmp_path / "export")
    assert made["proof"]["engine"].startswith("llama.cpp")
    llama = llama_cpp.Llama(str(tmp_path / "export" / "model.gguf"), n_ctx=32, verbose=False)
    text = llama.create_completion("The statement", max_tokens=16, temperature=0.0, repeat_penalty=1.0)
    assert text["choices"][0]["text"] == pieces.generate("The statement", max_new_tokens=16, temperature=0)


@pytest.mark.parametrize("settings", [GPT2, QWEN3], ids=["gpt2", "qwen3"])
@pytest.mark.parametrize("ends", [True, False])
def test_without_llama_cpp_the_file_is_read_back(
    settings: ModelSettings, ends: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    tokenizer = CharTokenizer(sorted(set(TEXT)), end_of_text=ends)
    proof = proven(tmp_path, random_model(settings, tokenizer), tokenizer)
    assert proof.largest_difference < 1e-4
    assert proof.encoded_tokens is None
    assert "llama.cpp is not installed here" in proof.sentences[0]
    assert (
        'FROM ./model.gguf\nTEMPLATE """{{ .Prompt }}"""\nPARAMETER num_ctx 48' in (tmp_path / "Modelfile").read_text()
    )


def test_a_wrong_tensor_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    tokenizer = ByteTokenizer()
    model = random_model(GPT2, tokenizer)
    gguf.write(tmp_path, model, tokenizer, None)
    with torch.no_grad():
        model.blocks[0].attn.c_proj.weight[0] += 0.5
    about = ParityInputs(np.random.default_rng(1).integers(257, size=(1, 49)), "", "random tokens")
    with pytest.raises(Mismatch, match="differ"):
        check_parity(model, tokenizer, gguf.engine(tmp_path, model, tokenizer), about, rounded=False)


def test_an_untrained_model_of_characters_is_refused(tmp_path: Path) -> None:
    tokenizer = CharTokenizer(list("abc"))
    with pytest.raises(ValueError, match=r"biases are still almost 0\. Train it further"):
        gguf.write(tmp_path, GPT(GPT2, tokenizer.vocab_size), tokenizer, None)


def test_numbers_that_cannot_be_rounded_together_are_refused(tmp_path: Path) -> None:
    settings = ModelSettings(block_size=16, n_layer=1, n_head=2, n_embd=20)
    with pytest.raises(ValueError, match=r"q8_0 rounds blocks of 32 numbers, and --n-embd 20 is no multiple of 32"):
        gguf.write(tmp_path, random_model(settings, ByteTokenizer()), ByteTokenizer(), "q8_0")
