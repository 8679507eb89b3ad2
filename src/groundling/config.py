"""Every setting, once: its name, type, default, limits and sentence of help.

The command line, the Python functions and `config.json` in a run's folder are all made from the
dataclasses below, so a setting has the same name everywhere: `n_layer` in Python and JSON, `--n-layer`
as a flag. Nothing here imports torch, so that `--help` answers at once.
"""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass, field
from functools import cache
from numbers import Integral
from typing import Any, Literal, TypeVar

T = TypeVar("T")


def setting(default: T, help: str) -> T:
    """A dataclass field with the sentence that `--help` shows for it."""
    return field(default=default, metadata={"help": help})


def flag(name: str) -> str:
    """`n_layer` -> `--n-layer`."""
    return "--" + name.replace("_", "-")


def _require(holds: bool, sentence: str) -> None:
    if not holds:
        raise ValueError(sentence)


def _require_at_least(minimum: float, settings: Any, *names: str) -> None:
    for name in names:
        value = getattr(settings, name)
        # Written so that NaN fails too.
        _require(
            value >= minimum and value != math.inf,
            f"{flag(name)} must be at least {minimum}, and it is {value}.",
        )


@dataclass(frozen=True)
class CorpusSettings:
    """Text -> tokens."""

    tokenizer: Literal["char"] = setting("char", "How text becomes tokens: one token a character.")
    glob: str | None = setting(None, "Which files of a folder to read, such as '*.txt'; all text files if not given.")
    val_fraction: float = setting(0.1, "The share of the text, at its end, that is kept for validation.")

    def __post_init__(self) -> None:
        share = self.val_fraction
        _require(0 < share <= 0.5, f"--val-fraction must lie above 0 and at most at 0.5, and it is {share}.")


@dataclass(frozen=True)
class ModelSettings:
    """The transformer. `norm`, `position`, `mlp` and `tie_head` choose its architecture: all the first of each are
    GPT-2's, all the second are Qwen3's, and other engines load either."""

    block_size: int = setting(256, "Context: how many tokens the model sees at once.")
    n_layer: int = setting(6, "Transformer blocks.")
    n_head: int = setting(6, "Attention heads in a block; must divide --n-embd.")
    n_kv_head: int = setting(0, "Key and value heads, shared among the attention heads; 0 for as many as those.")
    n_embd: int = setting(384, "Width: the size of the vector that stands for a token.")
    norm: Literal["layernorm", "rmsnorm"] = setting("layernorm", "Normalization; rmsnorm goes without any biases.")
    position: Literal["learned", "rope"] = setting(
        "learned", "Where a token stands: a learned vector, or rotations of normalized queries and keys."
    )
    mlp: Literal["gelu", "swiglu"] = setting("gelu", "The feed-forward part: of 4 × width, or gated, of 8/3 × width.")
    rope_theta: float = setting(10_000.0, "Rotary positions: the base of their wavelengths.")
    dropout: float = setting(0.0, "Share of activations dropped in training, on embeddings and residual branches.")
    tie_head: bool = setting(True, "Let the output head share the token embedding's weights, as GPT-2 does.")

    def __post_init__(self) -> None:
        _require_at_least(1, self, "block_size", "n_layer", "n_head", "n_embd", "rope_theta")
        _require_at_least(0, self, "n_kv_head")
        _require(
            self.n_embd % self.n_head == 0,
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
        return self.n_embd // self.n_head

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
        return 4 * self.n_embd if self.mlp == "gelu" else -(-8 * self.n_embd // 3 // 64) * 64


@dataclass(frozen=True)
class TrainingSettings:
    """How the weights are learned. `step` always means an optimizer step."""

    steps: int = setting(2000, "Optimizer steps in all.")
    batch_size: int = setting(32, "Windows of text in a forward pass.")
    accumulate: int = setting(1, "Forward passes a step: gradients of this many batches are averaged.")
    optimizer: Literal["adamw", "muon"] = setting("adamw", "muon: Muon for the blocks' matrices, AdamW for the rest.")
    learning_rate: float = setting(1e-3, "Peak learning rate of AdamW.")
    matrix_learning_rate: float = setting(0.02, "Peak learning rate of Muon.")
    schedule: Literal["cosine", "linear", "constant"] = setting("cosine", "How the learning rate falls after warm-up.")
    warmup_steps: int = setting(100, "Steps over which the learning rate rises to its peak.")
    final_lr_fraction: float = setting(0.1, "The learning rate at the end, as a share of the peak.")
    weight_decay: float = setting(0.1, "Decoupled decay, relative to the learning rate; on matrices only.")
    beta1: float = setting(0.9, "AdamW: decay of the gradient's mean.")
    beta2: float = setting(0.99, "AdamW: decay of the gradient's square.")
    grad_clip: float = setting(1.0, "Largest norm of the gradient; 0 switches clipping off.")
    eval_every: int = setting(200, "Steps between evaluations on the validation part.")
    eval_tokens: int = setting(
        262_144, "Tokens of a larger validation part that an evaluation reads, evenly spread; 0 reads all."
    )
    checkpoint_every: int = setting(1000, "Steps between checkpoints; the best and the last are saved in any case.")
    keep_checkpoints: int = setting(2, "How many of the newest checkpoints stay, beside the best; 0 keeps all.")
    sample_every: int | None = setting(None, "Steps between samples; at each evaluation if not given; 0 for none.")
    sample_prompt: str = setting("\n", "What the samples during training begin with.")
    sample_tokens: int = setting(200, "Length of the samples during training, in tokens.")
    log_every: int = setting(1, "Steps between lines in metrics.jsonl.")
    seed: int = setting(1337, "Decides initial weights, order of the text and dropout.")

    def __post_init__(self) -> None:
        _require_at_least(1, self, "steps", "batch_size", "accumulate", "eval_every", "checkpoint_every", "log_every")
        _require_at_least(
            0, self, "warmup_steps", "eval_tokens", "keep_checkpoints", "sample_tokens", "seed",
            "weight_decay", "grad_clip",
        )  # fmt: skip
        if self.sample_every is not None:
            _require_at_least(0, self, "sample_every")
        for name in ("learning_rate", "matrix_learning_rate"):
            value = getattr(self, name)
            _require(0 < value < math.inf, f"{flag(name)} must be above 0, and it is {value}.")
        floor = self.final_lr_fraction
        _require(0 <= floor <= 1, f"--final-lr-fraction must lie in [0, 1], and it is {floor}.")
        for name in ("beta1", "beta2"):
            _require(
                0 <= getattr(self, name) < 1,
                f"{flag(name)} must lie in [0, 1), and it is {getattr(self, name)}.",
            )
        _require(
            self.warmup_steps < self.steps or self.warmup_steps == 0,
            f"--warmup-steps {self.warmup_steps} leaves nothing of --steps {self.steps} to train at the full "
            "learning rate: choose fewer.",
        )
        _require(self.seed < 2**63, f"--seed must be below 2^63, and it is {self.seed}.")


@dataclass(frozen=True)
class MachineSettings:
    """Where it runs. `auto` is measured or looked up on the machine itself; `groundling doctor` shows what it gives."""

    device: str = setting("auto", "auto, cpu, cuda, cuda:1, mps, ...")
    dtype: Literal["auto", "float32", "bfloat16"] = setting("auto", "Arithmetic of the matrix products in training.")
    compile: Literal["auto", "on", "off"] = setting(
        "auto", "Whether torch.compile fuses the model; auto is off so far."
    )
    threads: int = setting(0, "CPU threads; 0 leaves the choice to PyTorch.")

    def __post_init__(self) -> None:
        _require_at_least(0, self, "threads")


GROUPS: dict[str, type[Any]] = {
    "text": CorpusSettings, "model": ModelSettings, "training": TrainingSettings, "machine": MachineSettings,
}  # fmt: skip


@dataclass(frozen=True)
class Preset:
    """A named starting point that any flag overrides."""

    description: str
    model: ModelSettings
    training: TrainingSettings


def _gpt2(description: str, n_layer: int, n_head: int, n_embd: int) -> Preset:
    # Shapes from "Language Models are Unsupervised Multitask Learners" (2019), table 2; the training settings
    # are those with which nanoGPT reproduces the smallest of them, at half a million tokens a step.
    return Preset(
        description,
        ModelSettings(block_size=1024, n_layer=n_layer, n_head=n_head, n_embd=n_embd),
        TrainingSettings(
            steps=600_000, batch_size=8, accumulate=60, learning_rate=6e-4, warmup_steps=2000, beta2=0.95,
            eval_every=1000, checkpoint_every=1000,
        ),
    )  # fmt: skip


_LAPTOP = Preset(
    "2.7M parameters of the modern family, context 256, some minutes on a laptop: the most for the time",
    ModelSettings(block_size=256, n_layer=6, n_head=3, n_embd=192, dropout=0.1,
                  norm="rmsnorm", position="rope", mlp="swiglu"),
    TrainingSettings(steps=500, batch_size=32, optimizer="muon", learning_rate=3e-3, matrix_learning_rate=0.02,
                     beta2=0.95, schedule="linear", final_lr_fraction=0.0, warmup_steps=20, eval_every=100,
                     checkpoint_every=100),
)  # fmt: skip
PRESETS: dict[str, Preset] = {
    "nano": Preset(
        "0.8M parameters of GPT-2's family: for tests and the impatient",
        ModelSettings(block_size=128, n_layer=4, n_head=4, n_embd=128),
        TrainingSettings(steps=2000, batch_size=16, learning_rate=4e-3, eval_every=200, checkpoint_every=500),
    ),
    "laptop": _LAPTOP,
    "workshop": Preset(
        "10.7M parameters, context 256, 5,000 steps: the workshop's model, as it trains there",
        ModelSettings(block_size=256, n_layer=6, n_head=6, n_embd=384, dropout=0.2),
        TrainingSettings(steps=5000, batch_size=64, warmup_steps=100, eval_every=200, checkpoint_every=1000),
    ),
    "gpt2": _gpt2("GPT-2's shape, 12 layers × 768 (124M with its 50,257 tokens)", 12, 12, 768),
    "gpt2-medium": _gpt2("GPT-2's shape, 24 layers × 1,024", 24, 16, 1024),
    "gpt2-large": _gpt2("GPT-2's shape, 36 layers × 1,280", 36, 20, 1280),
    "gpt2-xl": _gpt2("GPT-2's shape, 48 layers × 1,600", 48, 25, 1600),
}
DEFAULT_PRESET = "laptop"


@dataclass(frozen=True)
class Config:
    """All that decides a run, apart from the text itself."""

    corpus: str
    preset: str
    text: CorpusSettings
    model: ModelSettings
    training: TrainingSettings
    machine: MachineSettings

    @staticmethod
    def build(corpus: str, preset: str | None = None, **settings: Any) -> Config:
        """The preset's values with `settings` (any field of the four groups, by name) laid over them.

        A preset's warm-up longer than a fifth of `steps` is shortened to that, unless `warmup_steps` is given:
        `--steps 120` is a request for a short run, not for one that never reaches its learning rate.

        Raises ValueError, naming the flag, for unknown names, wrong types and impossible combinations.
        """
        preset = preset or DEFAULT_PRESET
        if preset not in PRESETS:
            raise ValueError(f"There is no preset {preset!r}; the presets are {', '.join(PRESETS)}.")
        base = PRESETS[preset]
        groups: dict[str, dict[str, Any]] = {
            "text": dataclasses.asdict(CorpusSettings()),
            "model": dataclasses.asdict(base.model),
            "training": dataclasses.asdict(base.training),
            "machine": dataclasses.asdict(MachineSettings()),
        }
        for name, value in settings.items():
            group = next((values for values in groups.values() if name in values), None)
            if group is None:
                raise ValueError(f"There is no setting {name!r}{did_you_mean(name, list(setting_fields()))}.")
            group[name] = value
        training = groups["training"]
        if "warmup_steps" not in settings and isinstance(training["steps"], Integral):  # NumPy's integers too
            training["warmup_steps"] = min(training["warmup_steps"], max(int(training["steps"]) // 5, 0))
        return Config.from_dict({"corpus": corpus, "preset": preset, **groups})

    @staticmethod
    def from_dict(values: dict[str, Any]) -> Config:
        """The inverse of `to_dict`; strict: an unknown, missing or mistyped setting is a ValueError that names it."""
        import pydantic

        # pydantic would give what is missing its default, which need not be the value that a run was made with.
        missing = _missing(values)
        if missing:
            raise ValueError(" ".join(f"The setting {name!r} is missing." for name in missing))
        try:
            # Through JSON, where a mapping is as good as a dataclass though everything else is strict.
            return _config_adapter().validate_json(json.dumps(values, default=_plain))
        except pydantic.ValidationError as error:
            raise ValueError(" ".join(_sentence(problem) for problem in error.errors())) from None

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def _plain(value: Any) -> Any:
    if getattr(value, "ndim", None) == 0:  # NumPy's numbers are numbers
        return value.item()
    return {type(value).__name__: repr(value)}  # what no setting can be; the text alone would pass for a `str`


def _missing(values: Any) -> list[str]:
    if not isinstance(values, dict):
        return []  # pydantic says so
    absent = [field.name for field in dataclasses.fields(Config) if field.name not in values]
    groups = [(group, values[name]) for name, group in GROUPS.items() if isinstance(values.get(name), dict)]
    return absent + [f.name for group, given in groups for f in dataclasses.fields(group) if f.name not in given]


@cache
def _config_adapter() -> Any:
    # pydantic checks types, required and unknown names; the limits are the dataclasses' own.
    import pydantic

    rules = pydantic.ConfigDict(extra="forbid", strict=True)
    for kind in (*GROUPS.values(), Config):
        setattr(kind, "__pydantic_config__", rules)  # noqa: B010  (pydantic's own name for it)
    return pydantic.TypeAdapter(Config)


def _sentence(problem: Any) -> str:
    """One pydantic problem in our words."""
    if problem["type"] == "value_error":
        return str(problem["ctx"]["error"])
    name = str(problem["loc"][-1]) if problem["loc"] else "settings"
    if problem["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        return f"There is no setting {name!r}{did_you_mean(name, list(setting_fields()))}."
    if problem["type"] == "json_invalid":
        return "A text among the settings, or the name of the corpus, is not valid Unicode."
    return f"{flag(name)} {json.dumps(problem['input'], default=repr)}: {problem['msg'].lower()}."


@cache
def setting_fields() -> dict[str, dataclasses.Field[Any]]:
    """Every setting by name, in the order of the groups."""
    return {f.name: f for group in GROUPS.values() for f in dataclasses.fields(group)}


def did_you_mean(word: str, known: list[str]) -> str:
    """` (did you mean 'x'?)` where something known is near to `word`, else nothing."""
    import difflib

    near = difflib.get_close_matches(word, known, n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""
