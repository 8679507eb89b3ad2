"""Does the other engine compute the same as groundling? It opens the export, and both get the same inputs.

Three things are compared: the logits of windows of validation text, a greedy generation, and the token ids of a text.
Quantized weights change the logits, so for them the loss on those windows is compared.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from groundling.config import Sampling
from groundling.data.conversations import Message, ToolCall
from groundling.data.tokenizers.base import END_OF_TEXT, Tokenizer
from groundling.data.tokenizers.chat import ChatTokenizer
from groundling.data.tokens import Tokens
from groundling.inference.engine import generate
from groundling.model.gpt import GPT

_WINDOWS, _LONGEST_WINDOW = 4, 1024
_GREEDY = 64  # tokens
_ENCODED = 200_000  # tokens of text whose ids are compared
_TEXT = "It's 12345.6 times — “don't”,\n\n\tdef f(x): return x²  # été, 語言, Привет, שלום, 😀🙂\r\n  (end) "
_LOSS_TOLERANCE = 0.02  # nats per token, for quantized weights


class Mismatch(ValueError):
    """The other engine computes something else."""


class ExternalEngine(Protocol):
    """An engine that has opened an export. Shapes: T time, V vocabulary."""

    name: str
    tolerance: float
    """How far its logits may differ from ours, in nats, with unquantized weights. The engines say why."""

    def logits(self, ids: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """(T,) -> (T, V)."""

    def greedy(self, ids: list[int], n: int) -> list[int]:
        """Up to n tokens that continue `ids`, by the engine's own generation."""

    def encode(self, text: str) -> list[int] | None:
        """The token ids of `text`. None if the engine has no tokenizer of its own."""


@runtime_checkable
class ChatEngine(ExternalEngine, Protocol):
    """One that also renders chats, by the export's chat template."""

    def encode_chat(self, messages: Sequence[Message], add_generation_prompt: bool) -> list[int]:
        """The token ids of a chat."""


@dataclass(frozen=True)
class ParityInputs:
    """What both engines compute on."""

    windows: npt.NDArray[np.int64]  # (n, T + 1)
    text: str
    source: str


@dataclass(frozen=True)
class ParityReport:
    """What was compared, and the differences. Losses are in nats per token, differences of logits in nats."""

    engine: str
    source: str
    windows: int
    tokens: int
    largest_difference: float
    tolerance: float | None  # None for quantized weights: their losses are compared
    loss: float
    engine_loss: float
    greedy_tokens: int
    greedy_same: int
    greedy_text: str
    encoded_tokens: int | None  # None if the engine has no tokenizer, or if there is no text
    chats: int = 0  # whose ids are the same

    @property
    def sentences(self) -> list[str]:
        """The report in words."""
        allowed = "weights are quantized" if self.tolerance is None else f"allowed: {self.tolerance:g}"
        same = "all are" if self.greedy_same == self.greedy_tokens else f"the first {self.greedy_same} are"
        sentences = [
            f"{self.engine} computed {self.windows} windows ({self.tokens:,} tokens) of {self.source}.",
            f"Its logits differ from groundling's by at most {self.largest_difference:.2g} ({allowed}). "
            f"Its loss is {self.engine_loss:.5f}, and groundling's is {self.loss:.5f}.",
            f"Of {self.greedy_tokens} greedily generated tokens, {same} the same.",
        ]
        if self.encoded_tokens is not None:
            sentences.append(f"Its tokenizer gives the same ids for {self.encoded_tokens:,} tokens of text.")
        if self.chats:
            sentences.append(f"The chat template gives the same ids for {self.chats} chats.")
        return sentences


def parity_inputs(model: GPT, tokenizer: Tokenizer, validation: Tokens | None) -> ParityInputs:
    """Evenly spread windows of the validation part, or random tokens and a short text if the text is gone."""
    T = min(model.config.block_size, _LONGEST_WINDOW)
    if validation is None or len(validation) < 8:
        rng = np.random.default_rng(0)
        return ParityInputs(rng.integers(model.vocab_size, size=(_WINDOWS, T + 1)), _TEXT, "random tokens")
    T = min(T, len(validation) - 1)
    starts = np.unique(np.linspace(0, len(validation) - T - 1, _WINDOWS).astype(np.int64))
    text = tokenizer.decode(validation.read(0, min(len(validation), _ENCODED)))
    return ParityInputs(validation.windows(starts, T + 1), text.replace(END_OF_TEXT, ""), "the validation text")


@torch.inference_mode()
def check_parity(
    model: GPT, tokenizer: Tokenizer, engine: ExternalEngine, about: ParityInputs, *, rounded: bool
) -> ParityReport:
    """Compare `model` with `engine`, whose weights are quantized if `rounded`. Raises Mismatch beyond the tolerance."""
    difference, losses = 0.0, np.zeros(2)
    for window in about.windows:
        ours = model(torch.from_numpy(window[None, :-1]))[0].float()
        theirs = torch.from_numpy(np.array(engine.logits(window[:-1]), dtype=np.float32))
        if theirs.shape != ours.shape:
            raise Mismatch(f"{engine.name} gives logits of shape {tuple(theirs.shape)}, not {tuple(ours.shape)}.")
        difference = max(difference, float((ours - theirs).abs().max().nan_to_num(nan=math.inf)))
        targets = torch.from_numpy(window[1:])
        losses += [float(F.cross_entropy(logits, targets)) / len(about.windows) for logits in (ours, theirs)]
    T = about.windows.shape[1] - 1
    n = min(_GREEDY, T * 3 // 4)
    prompt = about.windows[0, : T - n].tolist()
    own = list(generate(model, prompt, n, Sampling(temperature=0)))
    same = _count_same(model, prompt, own, engine.greedy(prompt, n), 2 * engine.tolerance)
    ids = engine.encode(about.text) if about.text else None
    chats = _chats(engine, tokenizer) if isinstance(tokenizer, ChatTokenizer) else []
    report = ParityReport(
        engine.name, about.source, len(about.windows), about.windows[:, :-1].size, difference,
        None if rounded else engine.tolerance, float(losses[0]), float(losses[1]), n, same, tokenizer.decode(own),
        None if ids is None else len(ids), len(chats),
    )  # fmt: skip
    problem = _problem(report) or _tokenizer_problem(ids, about.text, tokenizer)
    for their_ids, our_ids in chats:
        problem = problem or _ids_problem(their_ids, our_ids, tokenizer)
    if problem:
        raise Mismatch(f"{engine.name} does not compute the same: {problem}. Nothing was exported.")
    return report


def _problem(report: ParityReport) -> str:
    if not math.isfinite(report.largest_difference):
        return "its logits are not finite"
    if report.tolerance is None:
        if abs(report.engine_loss - report.loss) > _LOSS_TOLERANCE:
            return (
                f"its loss is {report.engine_loss:.4f}, and groundling's is {report.loss:.4f}. Quantized weights may "
                f"change it by {_LOSS_TOLERANCE} nats at most"
            )
    elif report.largest_difference > report.tolerance:
        return f"its logits differ by {report.largest_difference:.2g}, and at most {report.tolerance:.2g} is allowed"
    elif report.greedy_same < report.greedy_tokens:
        return f"only the first {report.greedy_same} of {report.greedy_tokens} greedily generated tokens are the same"
    return ""


def _tokenizer_problem(ids: list[int] | None, text: str, tokenizer: Tokenizer) -> str:
    return "" if ids is None else _ids_problem(ids, tokenizer.encode(text, "skip"), tokenizer)


def _ids_problem(ids: list[int], own: list[int], tokenizer: Tokenizer) -> str:
    if ids == own:
        return ""
    place = next((i for i, (a, b) in enumerate(zip(ids, own, strict=False)) if a != b), min(len(ids), len(own)))
    return f"its tokenizer gives other ids from token {place:,} on, near {tokenizer.decode(own[place : place + 8])!r}"


def _chats(engine: ExternalEngine, tokenizer: ChatTokenizer) -> list[tuple[list[int], list[int]]]:
    """The ids of some chats, by the engine and by us."""
    if not isinstance(engine, ChatEngine):
        return []
    text = tokenizer.decode(tokenizer.encode(_TEXT, "skip")).strip()
    user, assistant = Message("user", text), Message("assistant", text)
    calling = Message("assistant", "", (ToolCall("calculator", '{"expression": "47+38"}'), ToolCall("f", "{}")))
    chats = [
        [user], [user, assistant, user], [Message("system", text), user, assistant],
        [user, calling, Message("tool", text), assistant],
    ]  # fmt: skip
    pairs = []
    for chat in chats:
        for prompted in (False, True):
            with suppress(ValueError):  # the template or the vocabulary does not have this
                own = tokenizer.render(chat, prompted).ids
                pairs.append((engine.encode_chat(chat, prompted), own))
    return pairs


def _count_same(model: GPT, prompt: list[int], own: list[int], theirs: list[int], tie: float) -> int:
    """How many tokens two greedy generations share. All, if they diverge where two tokens are equally likely."""
    for i, token in enumerate(own):
        if i < len(theirs) and theirs[i] == token:
            continue
        if i < len(theirs):
            logits = model(torch.tensor([prompt + own[:i]]))[0, -1]
            if float(logits[token] - logits[theirs[i]]) <= tie:
                return len(own)  # from here on the two have different prefixes and cannot be compared
        return i
    return len(own)
