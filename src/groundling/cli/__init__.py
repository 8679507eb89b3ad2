"""The command line: one thin function per command. None imports torch before it runs."""

from groundling.cli import (
    chat,
    demo,
    inspect,
    interchange,
    machine,
    models,
    plan,
    prepare,
    runs,
    serve,
    studio,
    tasks,
    tokenizers,
    train,
    tune,
)
from groundling.cli.app import app

__all__ = [
    "app", "chat", "demo", "inspect", "interchange", "machine", "models", "plan", "prepare", "runs", "serve", "studio",
    "tasks", "tokenizers", "train", "tune",
]  # fmt: skip
