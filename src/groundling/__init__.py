"""groundling: train a language model from scratch, on your own machine.

    import groundling

    run = groundling.train("my.txt", steps=500)
    print(run.generate("ROMEO:", max_new_tokens=200, temperature=0.7, top_k=50, seed=1))
    print(run.evaluate())

The names below are the public API. Everything else may change.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from groundling.analysis.memorization import TrainingText
    from groundling.checkup.inspect import inspect
    from groundling.data.corpus import Corpus
    from groundling.data.tokenizers.base import Tokenizer
    from groundling.data.tokenizers.train import train_tokenizer
    from groundling.experiments.compare_tokenizers import compare_tokenizers
    from groundling.experiments.selftest import selftest
    from groundling.interchange.export import export
    from groundling.interchange.import_model import import_model
    from groundling.model.gpt import GPT
    from groundling.run.run import Run
    from groundling.run.store import load, runs
    from groundling.run.train import resume, train
    from groundling.run.tune import distill, dpo, grpo, reward, sft
    from groundling.web.server import serve
    from groundling.web.studio.app import studio

__all__ = [
    "GPT", "Corpus", "Run", "Tokenizer", "TrainingText", "__version__", "compare_tokenizers", "distill", "dpo",
    "export", "grpo", "import_model", "inspect", "load", "resume", "reward", "runs", "selftest", "serve", "sft",
    "studio", "train", "train_tokenizer",
]  # fmt: skip

_HOMES = {
    "Corpus": "groundling.data.corpus",
    "GPT": "groundling.model.gpt",
    "Run": "groundling.run.run",
    "Tokenizer": "groundling.data.tokenizers.base",
    "TrainingText": "groundling.analysis.memorization",
    "compare_tokenizers": "groundling.experiments.compare_tokenizers",
    "distill": "groundling.run.tune",
    "dpo": "groundling.run.tune",
    "export": "groundling.interchange.export",
    "grpo": "groundling.run.tune",
    "import_model": "groundling.interchange.import_model",
    "inspect": "groundling.checkup.inspect",
    "load": "groundling.run.store",
    "resume": "groundling.run.train",
    "reward": "groundling.run.tune",
    "runs": "groundling.run.store",
    "selftest": "groundling.experiments.selftest",
    "serve": "groundling.web.server",
    "sft": "groundling.run.tune",
    "studio": "groundling.web.studio.app",
    "train": "groundling.run.train",
    "train_tokenizer": "groundling.data.tokenizers.train",
}


def __getattr__(name: str) -> Any:
    """Import on first use (PEP 562), because `import groundling` must not wait for torch."""
    if name not in _HOMES:
        raise AttributeError(f"module 'groundling' has no attribute {name!r}")
    import importlib

    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
