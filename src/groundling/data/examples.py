"""Conversations as token ids with a mask of what is learned: the examples of post-training, all in memory.

An example is a conversation, a prompt, or one of the two replies of a pair. Its part depends on a hash of its prompt,
so that the same prompt never stands in both.
"""

from __future__ import annotations

import dataclasses
import hashlib
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch

from groundling.config import CorpusSettings
from groundling.data.batches import Batch, permute
from groundling.data.conversations import Message, Preference, Row, read_conversations
from groundling.data.fingerprint import HashingSource
from groundling.data.progress import Notice, Progress, silent
from groundling.data.sources import Source
from groundling.data.tokenizers.base import UnknownText
from groundling.data.tokenizers.chat import ChatTokenizer

Kind = Literal["conversations", "preferences", "prompts"]
Ids = npt.NDArray[np.uint32]
Mask = npt.NDArray[np.bool_]
_WINDOW = 32  # steps whose examples are sorted by length together
_NOUNS = {"conversations": "conversation", "preferences": "pair", "prompts": "prompt"}


@dataclass(frozen=True)
class Examples:
    """`tokens` of all examples in a row, `learned`, which of them are to be learned, and the `ends` of the examples. An
    example has at most `block_size` + 1 tokens."""

    tokens: Ids
    learned: Mask
    ends: npt.NDArray[np.int64]
    block_size: int

    @classmethod
    def of(cls, rows: Sequence[tuple[npt.ArrayLike, npt.ArrayLike]], block_size: int) -> Examples:
        """From ids and mask of each example. Those that are too long are cut at their end."""
        tokens = [np.asarray(ids, np.uint32)[: block_size + 1] for ids, _ in rows]
        learned = [np.asarray(mask, np.bool_)[: block_size + 1] for _, mask in rows]
        ends = np.cumsum([len(ids) for ids in tokens], dtype=np.int64)
        return cls(np.concatenate(tokens), np.concatenate(learned), ends, block_size)

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, row: int) -> tuple[Ids, Mask]:
        """Ids and mask of an example."""
        here = slice(int(self.ends[row] - self.lengths[row]), int(self.ends[row]))
        return self.tokens[here], self.learned[here]

    def prompt(self, row: int) -> list[int]:
        """The ids before the first one that is learned, or all if none is."""
        ids, learned = self[row]
        prompt: list[int] = ids[: learned.argmax() if learned.any() else None].tolist()
        return prompt

    @cached_property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Tokens of each example."""
        return np.diff(self.ends, prepend=0)

    def batch(self, rows: Sequence[int] | npt.NDArray[np.int64], width_multiple: int = 32) -> Batch:
        """The examples of `rows`, padded on the right to a multiple of `width_multiple`, or to the block size.

        The target of each token is the next one, and its weight is 1 if that is learned. Padding has weight 0.
        """
        examples = [self[int(row)] for row in rows]
        longest = max(1, *(len(ids) - 1 for ids, _ in examples))
        width = min(-(-longest // width_multiple) * width_multiple, self.block_size)
        tokens, weights = np.zeros((len(rows), width + 1), np.int64), np.zeros((len(rows), width + 1), np.float32)
        for i, (ids, learned) in enumerate(examples):
            tokens[i, : len(ids)], weights[i, : len(ids)] = ids, learned
        ids_of = torch.from_numpy(tokens)
        return Batch(ids_of[:, :-1], ids_of[:, 1:], torch.from_numpy(weights)[:, 1:])


@dataclass(frozen=True)
class Dataset:
    """Examples in two parts. Of preferences, rows 2i and 2i + 1 are the chosen and the rejected reply of pair i."""

    name: str
    fingerprint: str
    """SHA-256 of the files' bytes and formats."""
    tokenizer: ChatTokenizer
    train: Examples
    validation: Examples
    n_documents: int
    """Conversations, pairs or prompts in both parts."""
    n_characters: int
    notes: list[str]
    """Sentences about what was left out, cut or changed, and about what the examples hold."""
    kind: Kind
    shared_replies: float = 0.0
    """The share of the validation part's replies that are also in the training part."""
    repeats: int = 0
    """How many are the same as another."""

    @property
    def token_counts(self) -> tuple[int, int]:
        """Tokens of the training and of the validation part."""
        return len(self.train.tokens), len(self.validation.tokens)

    @property
    def n_train(self) -> int:
        """Conversations, pairs or prompts of the training part."""
        return len(self.train) // (2 if self.kind == "preferences" else 1)


def prepare_examples(
    source: Source, settings: CorpusSettings, tokenizer: ChatTokenizer, block_size: int, kind: Kind,
    notice: Notice = silent, progress: Progress = silent,
) -> Dataset:  # fmt: skip
    """Read, tokenize and split a source that was found with `entries=True`.

    Examples that are too long are cut at their end, or left out if nothing remains to be learned. Raises ValueError
    with a sentence for the user if an entry is damaged, or if there is nothing to learn or to validate on.
    """
    reading, notes = HashingSource(source), list(source.notices)
    rows = read_conversations(reading.source, settings, notes.append, progress)
    dataset = examples_of(rows, source.name, tokenizer, block_size, kind, settings.val_fraction, notes)
    for sentence in dataset.notes:
        notice(sentence)
    return dataclasses.replace(dataset, fingerprint=reading.fingerprint)


def examples_of(
    rows: Iterable[Row], name: str, tokenizer: ChatTokenizer, block_size: int, kind: Kind, val_fraction: float,
    notes: list[str],
) -> Dataset:  # fmt: skip
    """The dataset of rows that are in memory. `notes` are extended. Its fingerprint is empty."""
    made, noun = _Maker(tokenizer, block_size, kind), _NOUNS[kind]
    for row in rows:
        made.add(row)
    notes += made.notes()
    if not made.prompts:
        raise ValueError(" ".join([f"{name} has no {noun} to learn from.", *notes]))
    is_validation = _split(np.frombuffer(made.prompts, np.uint64), val_fraction)
    if not is_validation.any():
        raise ValueError(
            f"{name} has {len(made.prompts):,} {noun}{'s' * (len(made.prompts) > 1)}, all with the same prompt, so "
            "none can be kept for validation. Add others."
        )
    whole = made.examples()
    sides = np.repeat(is_validation, len(whole) // len(is_validation))
    train, validation = _part(whole, ~sides), _part(whole, sides)
    notes += _described(train, validation, kind)
    replies = np.frombuffer(made.replies, np.uint64)
    shared = float(np.isin(replies[is_validation], replies[~is_validation]).mean()) if kind != "prompts" else 0.0
    if shared:
        notes.append(f"{shared:.0%} of the validation part's replies are also in the training part, word for word.")
    if twice := len(made.wholes) - len(set(made.wholes)):
        notes.append(f"{twice:,} {noun}{'s are' if twice > 1 else ' is'} the same as another.")
    return Dataset(
        name, "", tokenizer, train, validation, len(made.prompts), made.n_characters, notes, kind, shared, twice
    )  # fmt: skip


def rendered(row: Row, kind: Kind, tokenizer: ChatTokenizer) -> list[tuple[list[int], list[bool]]]:
    """Ids and mask of the example of a row, uncut: one, or those with the chosen and with the rejected reply.

    Raises UnknownText if the tokenizer cannot encode it, and ValueError if the chat template refuses it.
    """
    before, reply = _halves(row, kind)
    render = tokenizer.render
    if kind == "prompts":
        return [(prompt := render(before, add_generation_prompt=True).ids, [False] * len(prompt))]
    if kind == "conversations":
        whole = render([*before, *reply])
        return [(whole.ids, whole.learned)]
    assert isinstance(row, Preference)
    prompt, sides = render(before, add_generation_prompt=True).ids, list[tuple[list[int], list[bool]]]()
    for side in (row.chosen, row.rejected):
        whole = render([*before, *side])
        if whole.ids[: len(prompt)] != prompt:
            raise ValueError("the chat template writes the prompt of the two replies differently")
        sides.append((whole.ids, [False] * len(prompt) + whole.learned[len(prompt) :]))
    return sides


def most_tokens(kind: Kind, block_size: int) -> int:
    """Where an example is cut. A prompt leaves half of the context to the reply."""
    return block_size // 2 if kind == "prompts" else block_size + 1


class _Maker:
    """Makes examples of rows, and counts what becomes of them."""

    def __init__(self, tokenizer: ChatTokenizer, block_size: int, kind: Kind) -> None:
        self._tokenizer, self._block_size, self._kind = tokenizer, block_size, kind
        self._tokens, self._learned, self._ends = array("I"), bytearray(), array("q")
        self.prompts, self.replies, self.wholes = array("Q"), array("Q"), array("Q")
        """Hashes, one for each row."""
        self.n_characters = self._n_cut = self._n_pairs = 0
        self._left_out = dict[str, tuple[int, str]]()

    def add(self, row: Row) -> None:
        """Raises ValueError for a row of another kind."""
        before, reply = _halves(row, self._kind)
        try:
            why = self._unfit(row, before, reply)
            sides = [] if why else rendered(row, self._kind, self._tokenizer)
        except UnknownText as error:
            self._leave_out("text that the tokenizer cannot encode", f"{row.place}: {str(error).partition('. ')[0]}")
            return
        except ValueError as error:
            raise ValueError(f"{row.place}: {error}.") from None
        most = most_tokens(self._kind, self._block_size)
        cut = [(ids[:most], learned[:most]) for ids, learned in sides]
        is_cut = any(len(ids) > most for ids, _ in sides)
        if is_cut and (self._kind == "prompts" or not all(any(learned[1:]) for _, learned in cut)):
            why = f"a prompt that is too long for the context of {self._block_size:,} tokens"
        if why:
            self._leave_out(why, row.place)
            return
        self._n_cut += is_cut
        self._n_pairs += isinstance(row, Preference) and self._kind == "conversations"
        for ids, learned in cut:
            self._tokens.extend(ids)
            self._learned.extend(learned)
            self._ends.append(len(self._tokens))
        asked = next((i for i, message in enumerate(before) if message.role == "assistant"), len(before))
        key = before[:asked] if any(message.role == "user" for message in before[:asked]) else [*before, *reply]
        self.prompts.append(_hash(key))
        self.replies.append(_hash(reply))
        self.wholes.append(_hash([*before, *reply, *(row.rejected if isinstance(row, Preference) else ())]))
        self.n_characters += sum(len(message.content) for message in (*before, *reply))

    def _unfit(self, row: Row, before: Sequence[Message], reply: Sequence[Message]) -> str:
        if self._kind == "preferences" and not isinstance(row, Preference):
            raise ValueError("expected a pair, with chosen and rejected replies, but it is one conversation")
        if self._kind == "prompts":
            return "" if any(message.role == "user" for message in before) else "no prompt"
        return "" if reply else "no reply of the assistant"

    def _leave_out(self, why: str, place: str) -> None:
        n, first = self._left_out.get(why, (0, place))
        self._left_out[why] = n + 1, first

    def notes(self) -> Iterator[str]:
        noun = _NOUNS[self._kind]
        for why, (n, first) in self._left_out.items():
            yield f"Left out {n:,} {noun}{'s' * (n > 1)} with {why} (first: {first.rstrip('.')})."
        if self._n_cut:
            several = "s" * (self._n_cut > 1)
            yield f"Cut {self._n_cut:,} {noun}{several} at {self._block_size:,} tokens, the model's context."
        if self._n_pairs:
            yield f"{self._n_pairs:,} are pairs: only their chosen replies are learned."

    def examples(self) -> Examples:
        tokens, ends = np.frombuffer(self._tokens, np.uint32), np.frombuffer(self._ends, np.int64)
        return Examples(tokens, np.frombuffer(self._learned, np.bool_), ends, self._block_size)


def _halves(row: Row, kind: Kind) -> tuple[Sequence[Message], Sequence[Message]]:
    """The prompt and the reply. The reply of a conversation begins at its first turn of the assistant, or, for prompts,
    at its last."""
    if isinstance(row, Preference):
        return row.prompt, row.chosen
    turns = [i for i, message in enumerate(row.messages) if message.role == "assistant"]
    if kind == "prompts":
        ends_with_reply = bool(turns) and turns[-1] == len(row.messages) - 1
        start = turns[-1] if ends_with_reply else len(row.messages)
    else:
        start = turns[0] if turns else len(row.messages)
    return row.messages[:start], row.messages[start:]


def _hash(messages: Sequence[Message]) -> int:
    content = hashlib.blake2b(digest_size=8)
    for message in messages:
        content.update(f"{message.role}\0{message.content}\0{message.calls}\0".encode())
    return int.from_bytes(content.digest(), "little")


def _split(prompts: npt.NDArray[np.uint64], val_fraction: float) -> Mask:
    """Which rows are for validation: those whose prompts have the smallest hashes, at least one and not all. None if
    there is only one prompt."""
    different = np.unique(prompts)
    n = int(np.searchsorted(different, np.uint64(min(val_fraction * 2**64, 2**64 - 2**11))))
    n = min(max(n, 1), len(different) - 1)
    return prompts < different[n] if n else np.zeros(len(prompts), np.bool_)


def _part(whole: Examples, chosen: Mask) -> Examples:
    lengths = whole.lengths
    here = np.repeat(chosen, lengths)
    return Examples(whole.tokens[here], whole.learned[here], np.cumsum(lengths[chosen]), whole.block_size)


def _described(train: Examples, validation: Examples, kind: Kind) -> Iterator[str]:
    per = 2 if kind == "preferences" else 1
    noun, n = _NOUNS[kind], (len(train) // per, len(validation) // per)
    tokens = len(train.tokens) + len(validation.tokens)
    learned = (train.learned.mean() * len(train.tokens) + validation.learned.mean() * len(validation.tokens)) / tokens
    share = "" if kind == "prompts" else f", of which {learned:.0%} are learned"
    yield f"{n[0]:,} {noun}{'s' * (n[0] > 1)} to train on and {n[1]:,} for validation: {tokens:,} tokens{share}."


@dataclass(frozen=True)
class ExampleSampler:
    """Which examples an optimizer step reads, as a pure function of seed and step.

    An epoch is a permutation of all examples. To pad little, the examples of 32 steps are sorted by length, cut into
    batches, and the batches shuffled.
    """

    lengths: npt.NDArray[np.int64]
    batch_size: int
    seed: int

    def rows(self, step: int) -> npt.NDArray[np.int64]:
        """The examples of a step, shape (batch_size,)."""
        n = max(1, min(_WINDOW, len(self.lengths) // self.batch_size))
        window, place = divmod(step, n)
        rows = self._permuted(window * n * self.batch_size, n * self.batch_size)
        rows = rows[np.argsort(self.lengths[rows], kind="stable")]
        batch = int(permute(np.array([place]), n, self._keys(window, 1))[0])
        return rows[batch * self.batch_size : (batch + 1) * self.batch_size]

    def epochs(self, step: int) -> float:
        """Epochs after `step` steps."""
        return step * self.batch_size / len(self.lengths)

    def _permuted(self, first: int, n: int) -> npt.NDArray[np.int64]:
        """The examples at places first ... first + n - 1 of the permutations of all epochs, one after another."""
        epochs, places = np.divmod(np.arange(first, first + n), len(self.lengths))
        rows = np.empty(n, np.int64)
        for epoch in range(epochs[0], epochs[-1] + 1):
            here = epochs == epoch
            rows[here] = permute(places[here], len(self.lengths), self._keys(epoch, 0))
        return rows

    def _keys(self, *which: int) -> npt.NDArray[np.uint64]:
        return np.random.SeedSequence([self.seed, *which]).generate_state(4, np.uint64).astype(np.uint64)
