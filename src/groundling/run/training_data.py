"""What each task is trained on: a text, examples, or prompts that the task makes itself."""

from __future__ import annotations

from typing import Any

from groundling.config import Config, CorpusSettings
from groundling.data.corpus import prepare
from groundling.data.examples import Kind, prepare_examples
from groundling.data.fingerprint import TextFingerprint
from groundling.data.mixture import Mixture, prepare_mixture
from groundling.data.progress import Notice, Progress, silent
from groundling.data.sources import Source
from groundling.data.tokenizers.base import Tokenizer
from groundling.data.tokenizers.chat import ChatTokenizer
from groundling.run.record import CorpusFacts, DocumentFacts, PartFacts
from groundling.tasks.prompts import TaskPrompts
from groundling.training.task import TrainingData

_KINDS: dict[str, Kind] = {"sft": "conversations", "dpo": "preferences", "reward": "preferences", "grpo": "prompts"}


def entries_of(task: str, tokenizer: Tokenizer) -> bool:
    """Whether a task reads files as entries with several fields, not as texts."""
    return task in _KINDS or (task == "distill" and isinstance(tokenizer, ChatTokenizer))


def prepare_data(
    source: Source, config: Config, settings: CorpusSettings, tokenizer: Tokenizer, contents: TextFingerprint,
    notice: Notice = silent, progress: Progress = silent,
) -> TrainingData:  # fmt: skip
    """The tokens of a text, or of examples, for the task of `config`. `settings` say how the files are read."""
    kind, fingerprint = _KINDS.get(config.task), contents.fingerprint
    if config.mix is not None:
        return prepare_mixture(source, config.mix, settings, contents, tokenizer, notice, progress)
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


def corpus_facts(text: TrainingData, contents: TextFingerprint) -> CorpusFacts:
    """What a run records about its text."""
    parts = dict[str, Any]()
    if isinstance(text, Mixture):
        parts["parts"] = [
            PartFacts(
                name=part.name,
                fingerprint=part.corpus.fingerprint,
                documents=part.corpus.n_documents,
                characters=part.corpus.n_characters,
            )
            for part in text.parts
        ]
    return CorpusFacts(
        name=text.name,
        fingerprint=text.fingerprint,
        documents=text.n_documents,
        characters=text.n_characters,
        vocab_size=text.tokenizer.vocab_size,
        tokenizer=text.tokenizer.fingerprint,
        contents=[DocumentFacts(**file) for file in contents.files],
        **parts,
    )
