"""Every setting, once: its name, type, default, limits and help text.

The command line, the Python functions and `config.json` in a run's folder are made from the dataclasses below. So a
setting has the same name everywhere: `n_layer` in Python and JSON, `--n-layer` as a flag. This module does not import
torch, so that `--help` is fast.
"""

from __future__ import annotations

import dataclasses
import math
import os
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

T = TypeVar("T")

TOKENIZERS = ("char", "byte", "bpe")
"""The kinds of tokenizers that need no file."""


def setting(default: T, help: str, legacy_default: Any = dataclasses.MISSING) -> T:
    """A dataclass field with its text for `--help`.

    A new setting also needs `legacy_default`, the value that runs had before the setting existed. A config.json without
    the setting gets this value, whatever the default is.
    """
    return field(default=default, metadata={"help": help, "legacy_default": legacy_default})


def flag(name: str) -> str:
    """`n_layer` -> `--n-layer`."""
    return "--" + name.replace("_", "-")


def _require_at_least(minimum: float, settings: Any, *names: str, most: float = 10**12) -> None:
    for name in names:
        value = getattr(settings, name)
        if not value >= minimum:  # written so that NaN fails too, here and below
            raise ValueError(f"{flag(name)} must be at least {minimum}, not {value}.")
        if value > most:
            raise ValueError(f"{flag(name)} must be at most {most:,}, not {value!s:.20}.")


def _require_short(settings: Any, *names: str, most: int = 4096) -> None:
    for name in names:
        length = len(getattr(settings, name) or "")
        if length > most:
            raise ValueError(f"{flag(name)} must have at most {most:,} characters, not {length:,}.")


@dataclass(frozen=True)
class CorpusSettings:
    """Text -> tokens."""

    tokenizer: str = setting(
        "char",
        "How text becomes tokens: char, byte, bpe (subwords learned from the training part), or a tokenizer file or "
        "folder: ours, a Hugging Face tokenizer.json, or GPT-2's vocab.json and merges.txt.",
    )
    vocab_size: int = setting(4096, "Largest vocabulary for bpe, including 256 bytes and the end-of-document token.")
    glob: str | None = setting(None, "Which files of a folder to read, such as '*.txt'. Default: all text files.")
    val_fraction: float = setting(0.1, "Share of the text to keep for validation, taken from its end.")

    def __post_init__(self) -> None:
        _require_short(self, "tokenizer", "glob")
        if self.tokenizer not in TOKENIZERS:
            path = os.path.expanduser(self.tokenizer)
            if not (os.path.isabs(path) or os.path.exists(path)):
                raise ValueError(
                    f"--tokenizer {self.tokenizer!r}: input should be {', '.join(TOKENIZERS)}, or the path of an "
                    "existing tokenizer file or folder."
                )
            object.__setattr__(self, "tokenizer", os.path.abspath(path))  # a run may be resumed from another folder
        _require_at_least(257, self, "vocab_size", most=2**22)
        if not 0 < self.val_fraction <= 0.5:
            raise ValueError(f"--val-fraction must be above 0 and at most 0.5, not {self.val_fraction}.")


@dataclass(frozen=True)
class ModelSettings:
    """The transformer. `norm`, `position`, `mlp` and `tie_head` choose its architecture: the first value of each gives
    GPT-2, the second Qwen3. Other engines can load both."""

    block_size: int = setting(256, "Context length: how many tokens the model sees at once.")
    n_layer: int = setting(6, "Number of transformer blocks.")
    n_head: int = setting(6, "Attention heads per block. Must divide --n-embd, unless you set --head-size.")
    n_kv_head: int = setting(0, "Key and value heads, shared by the attention heads. 0: as many as --n-head.")
    n_embd: int = setting(384, "Width: the size of a token's embedding vector.")
    head_size: int = setting(0, "Size of an attention head. 0: --n-embd divided by --n-head.", legacy_default=0)
    mlp_size: int = setting(0, "Hidden width of the feed-forward layer. 0: set by --mlp.", legacy_default=0)
    norm: Literal["layernorm", "rmsnorm"] = setting("layernorm", "Normalization. With rmsnorm there are no biases.")
    position: Literal["learned", "rope"] = setting(
        "learned", "Position encoding: learned embeddings, or RoPE with QK-norm."
    )
    mlp: Literal["gelu", "swiglu"] = setting("gelu", "Feed-forward layer: gelu, 4 × width, or gated, 8/3 × width.")
    rope_theta: float = setting(10_000.0, "RoPE: base of the wavelengths.")
    dropout: float = setting(0.0, "Share of activations to drop in training, on embeddings and residual branches.")
    tie_head: bool = setting(True, "Use the token embedding's weights for the output head too, as GPT-2 does.")

    def __post_init__(self) -> None:
        # Larger than anyone has trained, and small enough that no product of them is absurd.
        _require_at_least(1, self, "block_size", most=2**24)
        _require_at_least(1, self, "n_layer", "n_head", most=1000)
        _require_at_least(1, self, "n_embd", most=2**20)
        _require_at_least(1, self, "rope_theta")
        _require_at_least(0, self, "n_kv_head", most=1000)
        _require_at_least(0, self, "head_size", most=2**16)
        _require_at_least(0, self, "mlp_size", most=2**22)
        width, heads = f"--n-embd {self.n_embd}", f"--n-head {self.n_head}"
        if not self.head_size and self.n_embd % self.n_head:
            raise ValueError(
                f"{width} is not divisible by {heads}. Choose a multiple of {self.n_head}, or set --head-size."
            )
        if self.n_head % self.kv_heads:
            raise ValueError(f"{heads} is not divisible by --n-kv-head {self.n_kv_head}. Choose one of its divisors.")
        if self.position == "rope" and self.head_dim % 2:
            raise ValueError(
                f"--position rope needs an even head size, not {self.head_dim}. Set --head-size, or change {width} or "
                f"{heads}."
            )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"--dropout must be in [0, 1), not {self.dropout}.")

    @property
    def head_dim(self) -> int:
        return self.head_size or self.n_embd // self.n_head

    @property
    def kv_heads(self) -> int:
        return self.n_kv_head or self.n_head

    @property
    def has_biases(self) -> bool:
        return self.norm == "layernorm"

    @property
    def n_hidden(self) -> int:
        """Hidden width of the feed-forward layer. A gated one has three matrices instead of two: 8/3 keeps the number
        of weights, rounded up to a multiple of 64 for the matrix units."""
        if self.mlp_size:
            return self.mlp_size
        return 4 * self.n_embd if self.mlp == "gelu" else -(-8 * self.n_embd // 3 // 64) * 64


@dataclass(frozen=True)
class TrainingSettings:
    """How the weights are learned. `step` always means an optimizer step."""

    init_from: str | None = setting(
        None,
        "Start from the model and tokenizer of this run or checkpoint. Learning rates default to a tenth of its own.",
        legacy_default=None,
    )
    steps: int = setting(2000, "Total number of optimizer steps.")
    minutes: float = setting(
        0.0, "Time budget from the command to the last saved byte. Plans size, batch and schedule. Not with --steps."
    )
    batch_size: int = setting(32, "Micro-batch size: windows of text per forward pass.")
    accumulate: int = setting(1, "Micro-batches per step. Their gradients are averaged.")
    optimizer: Literal["adamw", "muon"] = setting("adamw", "muon: Muon for the blocks' matrices, AdamW for the rest.")
    learning_rate: float = setting(1e-3, "Peak learning rate of AdamW.")
    matrix_learning_rate: float = setting(0.02, "Peak learning rate of Muon.")
    schedule: Literal["cosine", "linear", "constant"] = setting("cosine", "How the learning rate falls after warmup.")
    warmup_steps: int = setting(100, "Steps in which the learning rate rises to its peak.")
    final_lr_fraction: float = setting(0.1, "Learning rate at the end, as a share of the peak.")
    weight_decay: float = setting(0.1, "Decoupled weight decay, relative to the learning rate. Matrices only.")
    weight_average: float = setting(
        0.0,
        "Save an average of the weights over the last part of training instead of the final weights (EMA), over this "
        "share of all steps so far. 0 turns it off.",
        legacy_default=0.0,
    )
    generations: int = setting(
        1,
        "Number of self-distillation generations. Each trains a new model on the text and on the previous model's "
        "predictions. Helps when the text is repeated many times.",
        legacy_default=1,
    )
    beta1: float = setting(0.9, "AdamW: decay rate of the gradient's mean.")
    beta2: float = setting(0.99, "AdamW: decay rate of the gradient's square.")
    grad_clip: float = setting(1.0, "Largest norm of the gradient. 0 turns clipping off.")
    eval_every: int = setting(200, "Steps between evaluations on the validation part.")
    eval_tokens: int = setting(262_144, "Validation tokens per evaluation, at most, spread evenly. 0: all of them.")
    patience: int = setting(0, "Stop after this many evaluations without a new best. 0: never.")
    checkpoint_every: int = setting(1000, "Steps between checkpoints. The best and the last are always saved.")
    keep_checkpoints: int = setting(2, "Newest checkpoints to keep beside the best one, at least two. 0: keep all.")
    sample_every: int | None = setting(None, "Steps between samples. Default: at each evaluation. 0: no samples.")
    sample_prompt: str = setting("\n", "Prompt for the samples during training.")
    sample_tokens: int = setting(200, "Length of the samples during training, in tokens.")
    log_every: int = setting(1, "Steps between lines in metrics.jsonl.")
    seed: int = setting(1337, "Random seed for initial weights, order of the text and dropout.")

    def __post_init__(self) -> None:
        _require_short(self, "init_from")
        _require_short(self, "sample_prompt", most=100_000)
        _require_at_least(1, self, "steps", "batch_size", "accumulate", "eval_every", "checkpoint_every", "log_every")
        _require_at_least(0, self, "warmup_steps", "eval_tokens", "patience", "keep_checkpoints", "sample_tokens")
        _require_at_least(0, self, "weight_decay", "grad_clip")
        _require_at_least(0, self, "seed", most=2**63 - 1)
        _require_at_least(1, self, "generations", most=100)
        if self.generations > 1 and self.patience:
            raise ValueError(
                "Use --patience or --generations, not both: a new generation is worse than the one before until it "
                "catches up."
            )
        if self.generations > self.steps:
            raise ValueError(f"--generations {self.generations} needs at least as many --steps, not {self.steps}.")
        if self.sample_every is not None:
            _require_at_least(0, self, "sample_every")
        two_weeks = 14 * 24 * 60
        if not (self.minutes == 0 or 0.2 <= self.minutes <= two_weeks):
            raise ValueError(f"--minutes must be between 0.2 and {two_weeks:,} (two weeks), not {self.minutes}.")
        for name in ("learning_rate", "matrix_learning_rate"):
            if not 0 < (value := getattr(self, name)) < math.inf:
                raise ValueError(f"{flag(name)} must be above 0 and finite, not {value}.")
        if not 0 <= self.final_lr_fraction <= 1:
            raise ValueError(f"--final-lr-fraction must be in [0, 1], not {self.final_lr_fraction}.")
        for name in ("beta1", "beta2", "weight_average"):
            if not 0 <= (value := getattr(self, name)) < 1:
                raise ValueError(f"{flag(name)} must be in [0, 1), not {value}.")
        if 0 < self.warmup_steps >= self.steps:
            raise ValueError(
                f"--warmup-steps {self.warmup_steps} must be fewer than --steps {self.steps}, so that some steps train "
                "at the full learning rate."
            )


@dataclass(frozen=True)
class MachineSettings:
    """Where a run is computed. `auto` is measured or looked up on the machine; `groundling doctor` shows the result."""

    device: str = setting("auto", "Where to compute: auto, cpu, cuda, cuda:1, mps, ...")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = setting(
        "auto", "Precision of matrix products in training."
    )
    compile: Literal["auto", "on", "off"] = setting(
        "auto", "Whether to use torch.compile. auto tries it if the run is long enough to benefit."
    )
    threads: int = setting(0, "CPU threads. 0: chosen automatically.")

    def __post_init__(self) -> None:
        _require_short(self, "device")
        _require_at_least(0, self, "threads", most=10_000)


GROUPS: dict[str, type[Any]] = {
    "text": CorpusSettings, "model": ModelSettings, "training": TrainingSettings, "machine": MachineSettings,
}  # fmt: skip


def setting_fields() -> dict[str, dataclasses.Field[Any]]:
    """Every setting by name, in the order of the groups."""
    return {f.name: f for group in GROUPS.values() for f in dataclasses.fields(group)}
