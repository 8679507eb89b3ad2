"""The command line: one thin function a verb. No logic lives here, and no torch is imported before a verb runs."""

from groundling.cli import inspect, machine, models, runs, selftest, tokenizers, train
from groundling.cli.app import app

__all__ = ["app", "inspect", "machine", "models", "runs", "selftest", "tokenizers", "train"]
