"""The command line: one thin function per command. None imports torch before it runs."""

from groundling.cli import (
    chat,
    course,
    course_board,
    demo,
    inspect,
    interchange,
    machine,
    models,
    plan,
    prepare,
    runs,
    serve,
    share,
    studio,
    tasks,
    tokenizers,
    train,
    tune,
)
from groundling.cli.app import app

__all__ = [
    "app", "chat", "course", "course_board", "demo", "inspect", "interchange", "machine", "models", "plan", "prepare",
    "runs", "serve", "share", "studio", "tasks", "tokenizers", "train", "tune",
]  # fmt: skip
