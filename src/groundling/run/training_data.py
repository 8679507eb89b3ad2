"""What each task is trained on: a text, examples, or prompts that the task makes itself."""

from __future__ import annotations

from groundling.config import Config, CorpusSettings
from groundling.data.corpus import prepare
from groundling.data.examples import Kind, prepare_examples
from groundling.data.progress import Notice, Progress, silent
from groundling.data.sources import Source
from groundling.data.tokenizers.base import Tokenizer
from groundling.data.tokenizers.chat import ChatTokenizer
from groundling.tasks.prompts import TaskPrompts
from groundling.training.task import TrainingData

_KINDS: dict[str, Kind] = {"sft": "conversations", "dpo": "preferences", "reward": "preferences", "grpo": "prompts"}


def entries_of(task: str, tokenizer: Tokenizer) -> bool:
    """Whether a task reads files as entries with several fields, not as texts."""
    return task in _KINDS or (task == "distill" and isinstance(tokenizer, ChatTokenizer))


def prepare_data(
    source: Source, config: Config, settings: CorpusSettings, tokenizer: Tokenizer, fingerprint: str,
    notice: Notice = silent, progress: Progress = silent,
) -> TrainingData:  # fmt: skip
    """The tokens of a text, or of examples, for the task of `config`. `settings` say how the files are read."""
    kind = _KINDS.get(config.task)
    if not entries_of(config.task, tokenizer):
        return prepare(source, settings, tokenizer=tokenizer, fingerprint=fingerprint, notice=notice, progress=progress)
    assert isinstance(tokenizer, ChatTokenizer)
    size = config.model.block_size - (config.task == "reward")  # which also reads the last token
    return prepare_examples(source, settings, tokenizer, size, kind or "conversations", notice, progress)


def task_prompts(config: Config, tokenizer: Tokenizer) -> TaskPrompts | None:
    """The prompts of a task with verifiable rewards, or None if the configuration names no such task."""
    name = getattr(config.method, "task", "")
    if not name:
        return None
    assert isinstance(tokenizer, ChatTokenizer)
    method = config.method
    tool = getattr(method, "tool", False)
    return TaskPrompts(name, method.level, tokenizer, config.model.block_size, method.max_completion_length, tool)
