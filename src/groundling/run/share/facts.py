"""What a page knows of its model: settings, tokenizer, and the figures and curve of its training."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from groundling.config import ModelSettings, flag
from groundling.data.tokenizers.base import ByteTokenizer, CharTokenizer, Tokenizer
from groundling.data.tokenizers.bpe import BpeTokenizer
from groundling.data.tokenizers.byte_level import BYTE_LEVEL
from groundling.data.tokenizers.chat import ChatTokenizer
from groundling.escape import printable
from groundling.inference.example_prompt import example_prompt
from groundling.inference.stream import start_ids
from groundling.model.rope import rope_frequencies, rope_scale
from groundling.reporting.run_facts import Facts
from groundling.run.eject.tokenizer import base_of, single_turn
from groundling.run.folder import RunFolder

_LEFT_OUT = ("parameters", "tokens per second")  # of the figures of a run: the page has its own, or needs none
_MODEL = (
    "block_size", "n_layer", "n_head", "n_kv_head", "n_embd", "head_size", "mlp_size", "norm", "norm_eps", "position",
    "qk_norm", "mlp", "attention_bias", "mlp_bias", "rope_theta", "rope_scaling", "sliding_window", "sliding_layers",
    "dropout", "tie_head",
)  # fmt: skip


def check_model(settings: ModelSettings) -> None:
    """Raise ValueError if the engine of the page lacks a part of the model."""
    for each in dataclasses.fields(settings):
        if each.name not in _MODEL and (value := getattr(settings, each.name)) != each.default:
            raise ValueError(
                f"A model with {flag(each.name)} {value} cannot be shared: the page's engine has no code for it."
            )


def model_facts(settings: ModelSettings) -> dict[str, Any]:
    """For model.js."""
    rope = settings.position == "rope"
    return {
        "context": settings.block_size, "heads": settings.n_head, "kvHeads": settings.kv_heads,
        "headSize": settings.head_dim, "windows": settings.windows, "norm": settings.norm,
        "epsilon": settings.epsilon, "qkEpsilon": settings.qk_epsilon, "mlp": settings.mlp,
        "frequencies": rope_frequencies(settings).tolist() if rope else None, "ropeScale": rope_scale(settings),
    }  # fmt: skip


def tokenizer_facts(tokenizer: Tokenizer, documents: int) -> dict[str, Any]:
    """For tokenizer.js, and the tokens around a prompt. `documents` is their number in the training text.

    Raises ValueError for a tokenizer that the page cannot compute.
    """
    base = base_of(tokenizer)
    kind = {CharTokenizer: "char", ByteTokenizer: "byte"}.get(type(base), "bpe")
    before, after = single_turn(tokenizer) if isinstance(tokenizer, ChatTokenizer) else ([], [])
    special = {token["id"]: token["content"] for token in tokenizer.to_huggingface()["added_tokens"]}
    return {
        "kind": kind, "merges": _merges(base) if kind == "bpe" else [],
        "pieces": [piece.decode("latin-1") for piece in tokenizer.pieces],  # a letter for each byte
        "special": {id: printable(name) for id, name in special.items() if not tokenizer.pieces[id]},
        "ends": list(tokenizer.end_ids), "chat": bool(after), "prefix": before or tokenizer.start_ids, "suffix": after,
        "start": start_ids(tokenizer, documents),
    }  # fmt: skip


def _merges(base: Tokenizer) -> list[list[int]]:
    """Pairs of ids that a byte-level BPE with GPT-2's words merges, in order."""
    definition = base.to_huggingface()
    model = definition["model"]
    plain = not any(model.get(key) for key in ("dropout", "unk_token", "byte_fallback", "ignore_merges"))
    plain = plain and not any(model.get(key) for key in ("continuing_subword_prefix", "end_of_word_suffix"))
    splits = {**BYTE_LEVEL, **(definition["pre_tokenizer"] or {})}
    known = isinstance(base, BpeTokenizer) or (
        model["type"] == "BPE" and plain and definition["normalizer"] is None and splits == BYTE_LEVEL
        and definition["pre_tokenizer"] is not None and all(token["special"] for token in definition["added_tokens"])
    )  # fmt: skip
    if not known:
        raise ValueError(
            "This run cannot be shared: its tokenizer is none of those that a page can compute, which are char, byte, "
            "bpe and GPT-2's."
        )
    ids = model["vocab"]
    pairs = (pair if isinstance(pair, list | tuple) else pair.split(" ") for pair in model["merges"])
    return [[ids[first], ids[second]] for first, second in pairs]


@dataclass(frozen=True)
class About:
    """What the page says. `figures` are values and names, and `chart` is as `reporting.charts.drawn` gives it."""

    name: str
    step: int
    is_chat: bool = False
    prompt: str = ""
    origin: str = ""
    standing: str = ""
    figures: Sequence[tuple[str, str]] = ()
    chart: Mapping[str, Any] | None = None


def about_run(run: RunFolder) -> About:
    """With the figures and the curve of the training, if there was any."""
    facts, settings = _training(run), run.config.model
    size = [
        (f"{sum(p.numel() for p in run.model.parameters()):,}", "parameters"), (f"{settings.n_layer:,}", "layers"),
        (f"{settings.block_size:,}", "tokens of context"),
        (f"{run.tokenizer.vocab_size:,}", "tokens in the vocabulary"),
    ]  # fmt: skip
    about = About(run.name, run.step, isinstance(run.tokenizer, ChatTokenizer), _prompt(run), figures=size)
    if facts is None:
        return about
    figures = [*size, *(pair for pair in facts.figures if pair[1] not in _LEFT_OUT)]
    chart = facts.charts.get("score") or facts.charts.get("loss")
    origin, standing = facts.origin.sentence, facts.standing
    return dataclasses.replace(about, origin=origin, standing=standing, figures=figures, chart=chart)


def _prompt(run: RunFolder) -> str:
    """Something to begin with: what the model was asked in its training, or a word of its text."""
    samples = run.samples()[-1:]
    if isinstance(run.tokenizer, ChatTokenizer):
        return "".join(sample["prompt"] for sample in samples).strip()
    text = (run.result or {}).get("prompt") or "".join(sample["text"] for sample in samples)
    return example_prompt(text, run.tokenizer, run.config.model.block_size // 2)


def _training(run: RunFolder) -> Facts | None:
    """None for a model that was imported, and for a checkpoint without its run."""
    metrics = run.metrics()
    if not any(line["event"] in ("step", "evaluation") for line in metrics):
        return None
    return Facts(run.name, run.record.to_dict(), run.config, metrics, [], run.result)
