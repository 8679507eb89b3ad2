"""Presets: model shapes and training settings that work well together."""

from __future__ import annotations

from dataclasses import dataclass

from groundling.config.settings import ModelSettings, TrainingSettings


@dataclass(frozen=True)
class Preset:
    """Named settings to start from. Any flag overrides them."""

    description: str
    model: ModelSettings
    training: TrainingSettings


def _gpt2(description: str, n_layer: int, n_head: int, n_embd: int) -> Preset:
    # Shapes from "Language Models are Unsupervised Multitask Learners" (2019), table 2. With these training settings,
    # nanoGPT reproduces the smallest of them, at half a million tokens per step.
    return Preset(
        description,
        ModelSettings(block_size=1024, n_layer=n_layer, n_head=n_head, n_embd=n_embd),
        TrainingSettings(
            steps=600_000, batch_size=8, accumulate=60, learning_rate=6e-4, warmup_steps=2000, beta2=0.95,
            eval_every=1000, checkpoint_every=1000,
        ),
    )  # fmt: skip


PRESETS: dict[str, Preset] = {
    "nano": Preset(
        "0.8M parameters, GPT-2 architecture, for quick tests",
        ModelSettings(block_size=128, n_layer=4, n_head=4, n_embd=128),
        TrainingSettings(steps=2000, batch_size=16, learning_rate=4e-3, eval_every=200, checkpoint_every=500),
    ),
    "laptop": Preset(
        "2.7M parameters, Qwen3 architecture, context 256: the best quality for some minutes on a laptop",
        ModelSettings(block_size=256, n_layer=6, n_head=3, n_embd=192, norm="rmsnorm", position="rope", mlp="swiglu"),
        TrainingSettings(
            steps=500, batch_size=32, optimizer="muon", learning_rate=3e-3, matrix_learning_rate=0.02, beta2=0.95,
            weight_decay=0.5, weight_average=0.06, schedule="linear", final_lr_fraction=0.0, warmup_steps=20,
            eval_every=100, checkpoint_every=100,
        ),
    ),
    "workshop": Preset(
        "10.7M parameters, context 256, 5,000 steps, as in the workshop",
        ModelSettings(block_size=256, n_layer=6, n_head=6, n_embd=384, dropout=0.2),
        # 64 windows per step, in four micro-batches, because a quarter of the activations fits into a CPU's caches.
        TrainingSettings(
            steps=5000, batch_size=16, accumulate=4, warmup_steps=100, eval_every=200, checkpoint_every=1000
        ),
    ),
    "gpt2": _gpt2("GPT-2 small, 12 layers × 768 (124M parameters with its 50,257 tokens)", 12, 12, 768),
    "gpt2-medium": _gpt2("GPT-2 medium, 24 layers × 1,024", 24, 16, 1024),
    "gpt2-large": _gpt2("GPT-2 large, 36 layers × 1,280", 36, 20, 1280),
    "gpt2-xl": _gpt2("GPT-2 XL, 48 layers × 1,600", 48, 25, 1600),
}  # fmt: skip
DEFAULT_PRESET = "laptop"
