"""Helpers for the interchange tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import groundling
from groundling.data.tokenizers.base import Tokenizer
from groundling.interchange import huggingface
from groundling.model.gpt import GPT
from groundling.model.weights_file import load_weights
from groundling.run.run import Run

QWEN3_PARTS: dict[str, Any] = {"norm": "rmsnorm", "position": "rope", "mlp": "swiglu"}
_SETTINGS: dict[str, Any] = {
    "preset": "nano", "n_layer": 2, "n_head": 2, "n_embd": 32, "block_size": 32, "batch_size": 8, "steps": 8,
    "eval_every": 4, "eval_tokens": 512, "checkpoint_every": 4, "sample_every": 0, "learning_rate": 3e-3,
    "device": "cpu", "dtype": "float32",
}  # fmt: skip


TINY_GPT2: dict[str, Any] = {"n_positions": 32, "n_embd": 32, "n_layer": 2, "n_head": 2}
TINY_QWEN3: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 50, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 12, "max_position_embeddings": 64,
    "rope_parameters": {"rope_type": "default", "rope_theta": 5000.0}, "tie_word_embeddings": True,
}  # fmt: skip


def saved(folder: Path, tokenizer: Tokenizer, kind: str, shard: str = "1GB", **settings: Any) -> Any:
    """Save a transformers model with random weights and `tokenizer` to `folder`."""
    import transformers

    torch.manual_seed(0)
    common = {"vocab_size": tokenizer.vocab_size, "bos_token_id": None, "eos_token_id": None}
    config = getattr(transformers, f"{kind}Config")(**common | settings)
    name = "GPT2LMHeadModel" if kind == "GPT2" else f"{kind}ForCausalLM"
    model = getattr(transformers, name)(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(folder, max_shard_size=shard)
    huggingface.write_tokenizer(folder, tokenizer, 32)
    return model


def trained(folder: Path, text: str, **settings: Any) -> Run:
    """A run of eight steps on `text`, saved as text.txt."""
    (folder / "text.txt").write_text(text, encoding="utf-8", newline="")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GROUNDLING_CACHE", str(folder / "cache"))
        return groundling.train(
            folder / "text.txt", name="tiny", out=folder / "runs", on_event=lambda _: None, **_SETTINGS | settings
        )


def text_of(run: Run) -> Path:
    return run.folder.parents[1] / "text.txt"


def logits_of(run: Run, tokens: Any) -> torch.Tensor:
    """Logits of the run's best checkpoint, on the CPU."""
    model = GPT(run.config.model, run.tokenizer.vocab_size).eval()
    load_weights(run.checkpoint, model)
    with torch.inference_mode():
        return model(torch.as_tensor(np.asarray(tokens)))
