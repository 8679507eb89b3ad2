"""groundling: train a language model from scratch, on the machine you have.

    import groundling

    run = groundling.train("my.txt", steps=500)
    print(run.generate("ROMEO:", max_new_tokens=200, temperature=0.7, top_k=50, seed=1))
    print(run.evaluate())

The names below are the public API; everything else may change.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from groundling.catalog import load, runs
    from groundling.comparison import compare_tokenizers
    from groundling.corpus.fitting import train_tokenizer
    from groundling.corpus.tokenizer import Tokenizer
    from groundling.corpus.tokens import Corpus
    from groundling.endurance.selftest import selftest
    from groundling.evaluation.originality import TrainingText
    from groundling.interchange.export import export
    from groundling.interchange.importing import import_model
    from groundling.launch import resume, train
    from groundling.model.gpt import GPT
    from groundling.run import Run
    from groundling.training.advice import inspect
    from groundling.web.server import serve

__all__ = [
    "GPT", "Corpus", "Run", "Tokenizer", "TrainingText", "__version__", "compare_tokenizers", "export",
    "import_model", "inspect", "load", "resume", "runs", "selftest", "serve", "train", "train_tokenizer",
]  # fmt: skip

_HOMES = {
    "Corpus": "groundling.corpus.tokens",
    "GPT": "groundling.model.gpt",
    "Run": "groundling.run",
    "Tokenizer": "groundling.corpus.tokenizer",
    "TrainingText": "groundling.evaluation.originality",
    "compare_tokenizers": "groundling.comparison",
    "export": "groundling.interchange.export",
    "import_model": "groundling.interchange.importing",
    "inspect": "groundling.training.advice",
    "load": "groundling.catalog",
    "resume": "groundling.launch",
    "runs": "groundling.catalog",
    "selftest": "groundling.endurance.selftest",
    "serve": "groundling.web.server",
    "train": "groundling.launch",
    "train_tokenizer": "groundling.corpus.fitting",
}


def __getattr__(name: str) -> Any:
    """Import on first use (PEP 562): `import groundling` must not wait for torch."""
    if name not in _HOMES:
        raise AttributeError(f"module 'groundling' has no attribute {name!r}")
    import importlib

    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
