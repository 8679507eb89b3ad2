"""The command line: one thin function a verb. No logic lives here, and no torch is imported before a verb runs."""

from groundling.cli import chat, inspect, interchange, machine, models, runs, selftest, serve, studio, tokenizers, train
from groundling.cli.app import app

__all__ = [
    "app", "chat", "inspect", "interchange", "machine", "models", "runs", "selftest", "serve", "studio", "tokenizers",
    "train",
]  # fmt: skip
