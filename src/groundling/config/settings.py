"""Every setting, once: its name, type, default, limits and help text.

The command line, the Python functions and `config.json` in a run's folder are made from the dataclasses below. So a
setting has the same name everywhere: `n_layer` in Python and JSON, `--n-layer` as a flag. This module does not import
torch, so that `--help` is fast.
"""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass
from typing import Any, Literal

from groundling.config import limits
from groundling.config.limits import Limits
from groundling.config.paths import slip
from groundling.config.setting import check_numbers, require_short, setting

_COUNT, _COUNT_OR_0 = Limits(1), Limits(0)
_PART = Limits(0, 1, fractions=True, below=True)  # some of a whole
_PROCESSES = Limits(1, 100_000)
TOKENIZERS = ("char", "byte", "bpe")
"""The kinds of tokenizers that need no file."""
READING = ("glob", "format", "field", "document_separator", "deduplicate")
"""The settings that decide which files are read, and how they become documents."""
PROCESSES = ("processes", "parallel", "tensor_parallel", "pipeline_parallel", "context_parallel")
"""The settings of processes that train together. They may differ between the sessions of a run."""


@dataclass(frozen=True)
class CorpusSettings:
    """Text -> tokens."""

    tokenizer: str = setting(
        "char",
        "How text becomes tokens: char, byte, bpe (subwords learned from the training part), or a tokenizer file or "
        "folder: ours, a Hugging Face tokenizer.json, or GPT-2's vocab.json and merges.txt.",
    )
    vocab_size: int = setting(
        4096, "Largest vocabulary for bpe, including 256 bytes and the end-of-document token.", limits.VOCAB_SIZE
    )
    glob: str | None = setting(None, "Which files of a folder to read, such as '*.txt'. Default: all text files.")
    val_fraction: float = setting(
        0.1,
        "Share of the text to keep for validation, taken from its end.",
        Limits(0, limits.MOST_VALIDATION, fractions=True, above=True),
    )
    format: Literal["auto", "text", "jsonl", "json", "csv", "tsv", "parquet"] = setting(
        "auto", "How to read files: auto decides by their content, text reads them as they are.", legacy_default="text"
    )
    field: str | None = setting(
        None, "Field or column of JSON, CSV and Parquet files with the text. Default: text.", legacy_default=None
    )
    document_separator: str = setting(
        "<|endoftext|>", "Text that separates the documents in a plain text file. '' for none.", legacy_default=""
    )
    deduplicate: bool = setting(
        False, "Leave out documents that are exact copies of earlier ones.", legacy_default=False
    )

    def __post_init__(self) -> None:
        require_short(self, "tokenizer", "glob", "field", "document_separator")
        if self.tokenizer not in TOKENIZERS:
            path = os.path.expanduser(self.tokenizer)
            if not (os.path.isabs(path) or os.path.exists(path)):
                if explanation := slip(self.tokenizer):
                    raise ValueError(f"--tokenizer {self.tokenizer!r}: {explanation}")
                raise ValueError(
                    f"--tokenizer {self.tokenizer!r}: input should be {', '.join(TOKENIZERS)}, or the path of an "
                    "existing tokenizer file or folder."
                )
            object.__setattr__(self, "tokenizer", os.path.abspath(path))  # a run may be resumed from another folder
        check_numbers(self)


@dataclass(frozen=True)
class ModelSettings:
    """The transformer. `norm`, `position`, `mlp` and `tie_head` choose its architecture: the first value of each gives
    GPT-2, the second Qwen3. Without `qk_norm`, the second is a Llama. Other engines can load all of them."""

    block_size: int = setting(256, "Context length: how many tokens the model sees at once.", limits.BLOCK_SIZE)
    n_layer: int = setting(6, "Number of transformer blocks.", Limits(1, 1000))
    n_head: int = setting(
        6, "Attention heads per block. Must divide --n-embd, unless you set --head-size.", Limits(1, 1000)
    )
    n_kv_head: int = setting(
        0, "Key and value heads, shared by the attention heads. 0: as many as --n-head.", Limits(0, 1000)
    )
    n_embd: int = setting(384, "Width: the size of a token's embedding vector.", limits.WIDTH)
    head_size: int = setting(
        0, "Size of an attention head. 0: --n-embd divided by --n-head.", limits=Limits(0, 2**16), legacy_default=0
    )
    mlp_size: int = setting(
        0, "Hidden width of the feed-forward layer. 0: set by --mlp.", limits=Limits(0, 2**22), legacy_default=0
    )
    norm: Literal["layernorm", "rmsnorm"] = setting("layernorm", "Normalization. layernorm has biases.")
    norm_eps: float = setting(
        0.0, "Epsilon of the normalization. 0: 1e-5 for layernorm, 1e-6 for rmsnorm.", limits=_PART, legacy_default=0.0
    )
    position: Literal["learned", "rope"] = setting(
        "learned", "Position encoding: learned embeddings, or RoPE with QK-norm."
    )
    qk_norm: bool = setting(
        True, "RoPE: normalize queries and keys first, as in Qwen3. Llama does not.", legacy_default=True
    )
    mlp: Literal["gelu", "swiglu"] = setting("gelu", "Feed-forward layer: gelu, 4 × width, or gated, 8/3 × width.")
    attention_bias: Literal["auto", "on", "off", "qkv"] = setting(
        "auto", "Biases in attention. qkv: not in its output, as in Qwen2. auto: with layernorm.", legacy_default="auto"
    )
    mlp_bias: Literal["auto", "on", "off"] = setting(
        "auto", "Biases in the feed-forward layer. auto: with layernorm.", legacy_default="auto"
    )
    rope_theta: float = setting(10_000.0, "RoPE: base of the wavelengths.", Limits(1, fractions=True))
    rope_scaling: str = setting(
        "none",
        "RoPE for a longer context than the model was first trained on: yarn:FACTOR:CONTEXT, such as yarn:4:256, "
        "linear:FACTOR, or llama3:FACTOR:LOW:HIGH:CONTEXT as in Llama 3.",
        legacy_default="none",
    )
    sliding_window: int = setting(
        0, "How many tokens the sliding layers see, the newest included. 0: all tokens.", limits.BLOCK_SIZE_OR_0,
        legacy_default=0,
    )  # fmt: skip
    sliding_layers: str = setting(
        "S",
        "With --sliding-window: which layers slide (S) and which see all tokens (F). Repeated over the layers, so S is "
        "every layer, and SSSF is all but every fourth.",
        legacy_default="S",
    )
    dropout: float = setting(
        0.0, "Share of activations to drop in training, on embeddings and residual branches.", _PART
    )
    tie_head: bool = setting(True, "Use the token embedding's weights for the output head too, as GPT-2 does.")

    def __post_init__(self) -> None:
        check_numbers(self)
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
        self.rope_factors  # noqa: B018  (raises ValueError)
        if not self.sliding_layers or len(self.sliding_layers) > 1000 or set(self.sliding_layers) - set("SF"):
            raise ValueError(f"--sliding-layers {self.sliding_layers[:80]!r}: use a pattern of S and F, such as SSSF.")
        if self.sliding_layers != "S" and not self.sliding_window:
            raise ValueError(f"--sliding-layers {self.sliding_layers[:80]} does nothing without --sliding-window.")

    @property
    def head_dim(self) -> int:
        return self.head_size or self.n_embd // self.n_head

    @property
    def kv_heads(self) -> int:
        return self.n_kv_head or self.n_head

    @property
    def epsilon(self) -> float:
        return self.norm_eps or (1e-5 if self.norm == "layernorm" else self.qk_epsilon)

    @property
    def qk_epsilon(self) -> float:
        return self.norm_eps or 1e-6

    @property
    def biases(self) -> tuple[bool, bool, bool]:
        """Whether there are biases in the layers for queries, keys and values, after attention, and in the MLP."""
        auto = "on" if self.norm == "layernorm" else "off"
        attention, mlp = (auto if chosen == "auto" else chosen for chosen in (self.attention_bias, self.mlp_bias))
        return attention != "off", attention == "on", mlp == "on"

    @property
    def windows(self) -> list[int]:
        """How many tokens each layer sees, the newest included. 0: all."""
        slides = self.sliding_layers * self.n_layer
        return [self.sliding_window if slides[layer] == "S" else 0 for layer in range(self.n_layer)]

    @property
    def rope_factors(self) -> tuple[float, ...]:
        """The numbers of `rope_scaling`: none, FACTOR, FACTOR and CONTEXT, or FACTOR, LOW, HIGH and CONTEXT."""
        kind, *parts = self.rope_scaling.split(":")
        try:
            numbers = tuple(map(float, parts))
        except ValueError:
            numbers = (0.0,)
        sound = all(1e-6 <= number <= 1e9 for number in numbers) and (len(numbers) < 4 or numbers[1] < numbers[2])
        if len(numbers) != {"none": 0, "linear": 1, "yarn": 2, "llama3": 4}.get(kind) or not sound:
            raise ValueError(
                f"--rope-scaling {self.rope_scaling[:80]!r}: use none, linear:FACTOR, yarn:FACTOR:CONTEXT, or "
                "llama3:FACTOR:LOW:HIGH:CONTEXT with LOW below HIGH."
            )
        return numbers

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
    steps: int = setting(2000, "Total number of optimizer steps.", _COUNT)
    minutes: float = setting(
        0.0, "Time budget from the command to the last saved byte. Plans size, batch and schedule. Not with --steps."
    )
    batch_size: int = setting(32, "Micro-batch size: windows of text per forward pass.", _COUNT)
    accumulate: int = setting(1, "Micro-batches per step. Their gradients are averaged.", _COUNT)
    recompute: Literal["none", "attention", "blocks"] = setting(
        "none",
        "Save memory: keep only the input of each attention or of each block, and compute it again in the backward "
        "pass. The results are the same. blocks takes about a third longer.",
        legacy_default="none",
    )
    optimizer: Literal["adamw", "muon"] = setting("adamw", "muon: Muon for the blocks' matrices, AdamW for the rest.")
    optimizer_bits: Literal[32, 8] = setting(
        32, "Bits of each number in the optimizer's state. 8 saves memory: 6 of 16 bytes per weight.", legacy_default=32
    )
    learning_rate: float = setting(1e-3, "Peak learning rate of AdamW.", limits.POSITIVE)
    matrix_learning_rate: float = setting(0.02, "Peak learning rate of Muon.", limits.POSITIVE)
    schedule: Literal["cosine", "linear", "constant"] = setting("cosine", "How the learning rate falls after warmup.")
    warmup_steps: int = setting(100, "Steps in which the learning rate rises to its peak.", _COUNT_OR_0)
    final_lr_fraction: float = setting(0.1, "Learning rate at the end, as a share of the peak.", limits.SHARE)
    weight_decay: float = setting(
        0.1, "Decoupled weight decay, relative to the learning rate. Matrices only.", Limits(0, fractions=True)
    )
    weight_average: float = setting(
        0.0,
        "Save an average of the weights over the last part of training instead of the final weights (EMA), over this "
        "share of all steps so far. 0 turns it off.",
        limits=_PART,
        legacy_default=0.0,
    )
    generations: int = setting(
        1,
        "Number of self-distillation generations. Each trains a new model on the text and on the previous model's "
        "predictions. Helps when the text is repeated many times.",
        limits=Limits(1, 100),
        legacy_default=1,
    )
    beta1: float = setting(0.9, "AdamW: decay rate of the gradient's mean.", _PART)
    beta2: float = setting(0.99, "AdamW: decay rate of the gradient's square.", _PART)
    grad_clip: float = setting(1.0, "Largest norm of the gradient. 0 turns clipping off.", Limits(0, fractions=True))
    eval_every: int = setting(200, "Steps between evaluations on the validation part.", _COUNT)
    eval_tokens: int = setting(
        262_144, "Validation tokens per evaluation, at most, spread evenly. 0: all of them.", _COUNT_OR_0
    )
    patience: int = setting(0, "Stop after this many evaluations without a new best. 0: never.", _COUNT_OR_0)
    checkpoint_every: int = setting(1000, "Steps between checkpoints. The best and the last are always saved.", _COUNT)
    keep_checkpoints: int = setting(
        2, "Newest checkpoints to keep beside the best one, at least two. 0: keep all.", _COUNT_OR_0
    )
    sample_every: int | None = setting(
        None, "Steps between samples. Default: at each evaluation. 0: no samples.", _COUNT_OR_0
    )
    sample_prompt: str = setting("\n", "Prompt for the samples during training.")
    sample_tokens: int = setting(200, "Length of the samples during training, in tokens.", _COUNT_OR_0)
    log_every: int = setting(1, "Steps between lines in metrics.jsonl.", _COUNT)
    seed: int = setting(1337, "Random seed for initial weights, order of the text and dropout.", limits.SEED)

    def __post_init__(self) -> None:
        require_short(self, "init_from")
        require_short(self, "sample_prompt", most=100_000)
        check_numbers(self)
        if self.minutes != 0:
            limits.MINUTES.check("--minutes", self.minutes)
        if self.generations > 1 and self.patience:
            raise ValueError(
                "Use --patience or --generations, not both: a new generation is worse than the one before until it "
                "catches up."
            )
        if self.generations > self.steps:
            raise ValueError(f"--generations {self.generations} needs at least as many --steps, not {self.steps}.")
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
    threads: int = setting(0, "CPU threads of each process. 0: chosen automatically.", Limits(0, 10_000))
    processes: int = setting(
        1, "Processes that train together, on this machine: one for each GPU, or for some cores.", limits=_PROCESSES,
        legacy_default=1,
    )  # fmt: skip
    parallel: Literal["auto", "ddp", "fsdp"] = setting(
        "auto",
        "How processes hold weights: ddp, each has all; fsdp, each has a shard. auto: ddp if they fit in its memory.",
        legacy_default="auto",
    )
    tensor_parallel: int = setting(
        1, "Processes that divide each matrix among them.", limits=_PROCESSES, legacy_default=1
    )
    pipeline_parallel: int = setting(
        1, "Processes that divide the blocks among them.", limits=_PROCESSES, legacy_default=1
    )
    context_parallel: int = setting(
        1, "Processes that divide each window of text among them.", limits=_PROCESSES, legacy_default=1
    )

    def __post_init__(self) -> None:
        require_short(self, "device")
        check_numbers(self)


GROUPS: dict[str, type[Any]] = {
    "text": CorpusSettings, "model": ModelSettings, "training": TrainingSettings, "machine": MachineSettings,
}  # fmt: skip


def setting_fields() -> dict[str, dataclasses.Field[Any]]:
    """Every setting by name, in the order of the groups."""
    return {f.name: f for group in GROUPS.values() for f in dataclasses.fields(group)}
