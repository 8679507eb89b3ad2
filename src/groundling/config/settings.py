"""Every setting, once: its name, type, default, limits and sentence of help.

The command line, the Python functions and `config.json` in a run's folder are all made from the
dataclasses below, so a setting has the same name everywhere: `n_layer` in Python and JSON, `--n-layer`
as a flag. Nothing here imports torch, so that `--help` answers at once.
"""

from __future__ import annotations

import dataclasses
import math
import os
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal, TypeVar

T = TypeVar("T")

TOKENIZERS = ("char", "byte", "bpe")
"""The kinds of tokenizers that need no file."""


def setting(default: T, help: str, before: Any = dataclasses.MISSING) -> T:
    """A dataclass field with the sentence that `--help` shows for it.

    `before`, which each setting needs that comes to others later, is what runs did when it was not there: its value
    where a config.json does not have it, whatever the default.
    """
    return field(default=default, metadata={"help": help, "before": before})


def flag(name: str) -> str:
    """`n_layer` -> `--n-layer`."""
    return "--" + name.replace("_", "-")


def _require(holds: bool, sentence: str) -> None:
    if not holds:
        raise ValueError(sentence)


def _require_at_least(minimum: float, settings: Any, *names: str, most: float = 10**12) -> None:
    for name in names:
        value = getattr(settings, name)
        # Written so that NaN fails too.
        _require(value >= minimum, f"{flag(name)} must be at least {minimum}, and it is {value}.")
        _require(value <= most, f"{flag(name)} must be at most {most:,}, and it is {value!s:.20}.")


def _require_short(settings: Any, *names: str, most: int = 4096) -> None:
    for name in names:
        length = len(getattr(settings, name) or "")
        _require(length <= most, f"{flag(name)} must have at most {most:,} characters, and it has {length:,}.")


@dataclass(frozen=True)
class CorpusSettings:
    """Text -> tokens."""

    tokenizer: str = setting(
        "char",
        "How text becomes tokens: char, byte, bpe (pieces of words, learned from the training part), or a tokenizer's "
        "file or folder: ours, the library tokenizers' tokenizer.json, GPT-2's vocab.json and merges.txt.",
    )
    vocab_size: int = setting(4096, "Tokens that bpe learns, at most: 256 bytes, pieces, and the end of a document.")
    glob: str | None = setting(None, "Which files of a folder to read, such as '*.txt'; all text files if not given.")
    val_fraction: float = setting(0.1, "The share of the text, at its end, that is kept for validation.")

    def __post_init__(self) -> None:
        _require_short(self, "tokenizer", "glob")
        if self.tokenizer not in TOKENIZERS:
            path = os.path.expanduser(self.tokenizer)
            _require(
                os.path.isabs(path) or os.path.exists(path),
                f"--tokenizer {self.tokenizer!r}: input should be {', '.join(TOKENIZERS)}, or a tokenizer's file or "
                "folder, and no such one is here.",
            )
            object.__setattr__(self, "tokenizer", os.path.abspath(path))  # a run may go on elsewhere
        _require_at_least(257, self, "vocab_size", most=2**22)
        share = self.val_fraction
        _require(0 < share <= 0.5, f"--val-fraction must lie above 0 and at most at 0.5, and it is {share}.")


@dataclass(frozen=True)
class ModelSettings:
    """The transformer. `norm`, `position`, `mlp` and `tie_head` choose its architecture: all the first of each are
    GPT-2's, all the second are Qwen3's, and other engines load either."""

    block_size: int = setting(256, "Context: how many tokens the model sees at once.")
    n_layer: int = setting(6, "Transformer blocks.")
    n_head: int = setting(6, "Attention heads in a block; must divide --n-embd, but for a --head-size of its own.")
    n_kv_head: int = setting(0, "Key and value heads, shared among the attention heads; 0 for as many as those.")
    n_embd: int = setting(384, "Width: the size of the vector that stands for a token.")
    head_size: int = setting(0, "Size of a head; 0 for the width shared out among the heads.", before=0)
    mlp_size: int = setting(0, "Width of the feed-forward part; 0 for what --mlp says.", before=0)
    norm: Literal["layernorm", "rmsnorm"] = setting("layernorm", "Normalization; rmsnorm goes without any biases.")
    position: Literal["learned", "rope"] = setting(
        "learned", "Where a token stands: a learned vector, or rotations of normalized queries and keys."
    )
    mlp: Literal["gelu", "swiglu"] = setting("gelu", "The feed-forward part: of 4 × width, or gated, of 8/3 × width.")
    rope_theta: float = setting(10_000.0, "Rotary positions: the base of their wavelengths.")
    dropout: float = setting(0.0, "Share of activations dropped in training, on embeddings and residual branches.")
    tie_head: bool = setting(True, "Let the output head share the token embedding's weights, as GPT-2 does.")

    def __post_init__(self) -> None:
        # Beyond what anyone has trained, and small enough that no product of them is absurd.
        _require_at_least(1, self, "block_size", most=2**24)
        _require_at_least(1, self, "n_layer", "n_head", most=1000)
        _require_at_least(1, self, "n_embd", most=2**20)
        _require_at_least(1, self, "rope_theta")
        _require_at_least(0, self, "n_kv_head", most=1000)
        _require_at_least(0, self, "head_size", most=2**16)
        _require_at_least(0, self, "mlp_size", most=2**22)
        _require(
            self.head_size > 0 or self.n_embd % self.n_head == 0,
            f"--n-embd {self.n_embd} cannot be divided among --n-head {self.n_head} heads: "
            f"choose a multiple of {self.n_head}.",
        )
        _require(
            self.n_head % self.kv_heads == 0,
            f"--n-head {self.n_head} heads cannot share --n-kv-head {self.n_kv_head} key and value heads evenly.",
        )
        _require(
            self.position == "learned" or self.head_dim % 2 == 0,
            f"--position rope needs heads of even size, and --n-embd {self.n_embd} by --n-head {self.n_head} "
            f"gives {self.head_dim}.",
        )
        _require(0 <= self.dropout < 1, f"--dropout must lie in [0, 1), and it is {self.dropout}.")

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
        """Width of the feed-forward part. A gated one has three matrices and not two: 8/3 keeps its size, rounded up
        to a multiple of 64 for the matrix units."""
        if self.mlp_size:
            return self.mlp_size
        return 4 * self.n_embd if self.mlp == "gelu" else -(-8 * self.n_embd // 3 // 64) * 64


@dataclass(frozen=True)
class TrainingSettings:
    """How the weights are learned. `step` always means an optimizer step."""

    init_from: str | None = setting(
        None,
        "A run, or a checkpoint, whose model and tokenizer to train further on this text; learning rates are then a "
        "tenth of its own.",
        before=None,
    )
    steps: int = setting(2000, "Optimizer steps in all.")
    minutes: float = setting(
        0.0,
        "Time in all, from the command to the last saved byte: size, batch and schedule are planned to make the most "
        "of it. Excludes --steps.",
    )
    batch_size: int = setting(32, "Windows of text in a forward pass.")
    accumulate: int = setting(1, "Forward passes a step: gradients of this many batches are averaged.")
    optimizer: Literal["adamw", "muon"] = setting("adamw", "muon: Muon for the blocks' matrices, AdamW for the rest.")
    learning_rate: float = setting(1e-3, "Peak learning rate of AdamW.")
    matrix_learning_rate: float = setting(0.02, "Peak learning rate of Muon.")
    schedule: Literal["cosine", "linear", "constant"] = setting("cosine", "How the learning rate falls after warm-up.")
    warmup_steps: int = setting(100, "Steps over which the learning rate rises to its peak.")
    final_lr_fraction: float = setting(0.1, "The learning rate at the end, as a share of the peak.")
    weight_decay: float = setting(0.1, "Decoupled decay, relative to the learning rate; on matrices only.")
    weight_average: float = setting(
        0.0,
        "Let the model be the average of its weights over the latest steps, this share of all so far; 0 for the "
        "weights as the last step left them.",
        before=0.0,
    )
    generations: int = setting(
        1,
        "Parts that training has, each longer than the one before (1:2:3...): in each, a new model learns from the "
        "text, and from what the model before makes of it. Better than a single part where the text is read often.",
        before=1,
    )
    beta1: float = setting(0.9, "AdamW: decay of the gradient's mean.")
    beta2: float = setting(0.99, "AdamW: decay of the gradient's square.")
    grad_clip: float = setting(1.0, "Largest norm of the gradient; 0 switches clipping off.")
    eval_every: int = setting(200, "Steps between evaluations on the validation part.")
    eval_tokens: int = setting(
        262_144, "Tokens of a larger validation part that an evaluation reads, evenly spread; 0 reads all."
    )
    patience: int = setting(0, "Stop after so many evaluations that were no better than the best one; 0 for never.")
    checkpoint_every: int = setting(1000, "Steps between checkpoints; the best and the last are saved in any case.")
    keep_checkpoints: int = setting(2, "Newest checkpoints that stay, beside the best: two at least; 0 keeps all.")
    sample_every: int | None = setting(None, "Steps between samples; at each evaluation if not given; 0 for none.")
    sample_prompt: str = setting("\n", "What the samples during training begin with.")
    sample_tokens: int = setting(200, "Length of the samples during training, in tokens.")
    log_every: int = setting(1, "Steps between lines in metrics.jsonl.")
    seed: int = setting(1337, "Decides initial weights, order of the text and dropout.")

    def __post_init__(self) -> None:
        _require_short(self, "init_from")
        _require_short(self, "sample_prompt", most=100_000)
        _require_at_least(1, self, "steps", "batch_size", "accumulate", "eval_every", "checkpoint_every", "log_every")
        _require_at_least(
            0, self, "warmup_steps", "eval_tokens", "patience", "keep_checkpoints", "sample_tokens", "weight_decay",
            "grad_clip",
        )  # fmt: skip
        _require_at_least(0, self, "seed", most=2**63 - 1)
        _require_at_least(1, self, "generations", most=100)
        _require(
            self.generations == 1 or not self.patience,
            "--patience and --generations exclude each other: a new generation is worse than the one before until it "
            "has caught up.",
        )
        _require(
            self.generations <= self.steps,
            f"--generations {self.generations} need a step each at least, and --steps is {self.steps}.",
        )
        if self.sample_every is not None:
            _require_at_least(0, self, "sample_every")
        _require(
            self.minutes == 0 or 0.2 <= self.minutes <= 14 * 24 * 60,
            f"--minutes must lie between 0.2 and {14 * 24 * 60:,} (two weeks), and it is {self.minutes}.",
        )
        for name in ("learning_rate", "matrix_learning_rate"):
            value = getattr(self, name)
            _require(0 < value < math.inf, f"{flag(name)} must be above 0, and it is {value}.")
        floor = self.final_lr_fraction
        _require(0 <= floor <= 1, f"--final-lr-fraction must lie in [0, 1], and it is {floor}.")
        for name in ("beta1", "beta2", "weight_average"):
            _require(
                0 <= getattr(self, name) < 1,
                f"{flag(name)} must lie in [0, 1), and it is {getattr(self, name)}.",
            )
        _require(
            self.warmup_steps < self.steps or self.warmup_steps == 0,
            f"--warmup-steps {self.warmup_steps} leaves nothing of --steps {self.steps} to train at the full "
            "learning rate: choose fewer.",
        )


@dataclass(frozen=True)
class MachineSettings:
    """Where it runs. `auto` is measured or looked up on the machine itself; `groundling doctor` shows what it gives."""

    device: str = setting("auto", "auto, cpu, cuda, cuda:1, mps, ...")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = setting(
        "auto", "Arithmetic of the matrix products in training."
    )
    compile: Literal["auto", "on", "off"] = setting(
        "auto", "Whether torch.compile fuses the model; auto tries it where the run is long enough to gain by it."
    )
    threads: int = setting(0, "CPU threads; 0 leaves the choice to PyTorch.")

    def __post_init__(self) -> None:
        _require_short(self, "device")
        _require_at_least(0, self, "threads", most=10_000)


GROUPS: dict[str, type[Any]] = {
    "text": CorpusSettings, "model": ModelSettings, "training": TrainingSettings, "machine": MachineSettings,
}  # fmt: skip


@cache
def setting_fields() -> dict[str, dataclasses.Field[Any]]:
    """Every setting by name, in the order of the groups."""
    return {f.name: f for group in GROUPS.values() for f in dataclasses.fields(group)}
