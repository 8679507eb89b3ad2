"""Does the other engine compute the same? It opens what was written, and both are asked.

Three things are compared: the logits of windows of validation text, the text that each writes greedily (always the
likeliest token), and the ids that each gives a text. Where weights were rounded on purpose, logits cannot be the same;
there the loss on those windows has to be.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from groundling.config import Sampling
from groundling.data.corpus import Tokens
from groundling.data.tokenizers.base import END_OF_TEXT, Tokenizer
from groundling.inference.engine import generate
from groundling.model.gpt import GPT

_WINDOWS, _LONGEST_WINDOW = 4, 1024
_GREEDY = 64  # tokens
_ENCODED = 200_000  # tokens of text whose ids are compared
_LOSS_TOLERANCE = 0.02  # nats a token, for weights that were rounded on purpose


class Mismatch(ValueError):
    """The other engine computes something else."""


class ExternalEngine(Protocol):
    """What an engine that has opened an export can be asked. Shapes: T time, V vocabulary."""

    name: str
    tolerance: float
    """How far its logits may be from ours, in nats, where the weights are the same: see the engines."""

    def logits(self, ids: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """(T,) -> (T, V)."""

    def greedy(self, ids: list[int], n: int) -> list[int]:
        """Up to n tokens that continue `ids`, by the engine's own generation."""

    def encode(self, text: str) -> list[int] | None:
        """The ids of a text; None if the engine has no tokenizer of its own."""


@dataclass(frozen=True)
class ParityInputs:
    """What both engines are asked about."""

    windows: npt.NDArray[np.int64]  # (n, T + 1)
    text: str  # "" where there is none
    source: str


@dataclass(frozen=True)
class ParityReport:
    """What was compared, and how far apart it was. Losses are in nats a token, differences of logits in nats too."""

    engine: str
    source: str
    windows: int
    tokens: int
    largest_difference: float
    tolerance: float | None  # None where the weights were rounded: there the losses are compared
    loss: float
    engine_loss: float
    greedy_tokens: int
    greedy_same: int
    greedy_text: str
    encoded_tokens: int | None  # None if the engine has no tokenizer, or there is no text

    @property
    def sentences(self) -> list[str]:
        """The proof in words."""
        allowed = "weights were rounded" if self.tolerance is None else f"allowed: {self.tolerance:g}"
        same = "all are" if self.greedy_same == self.greedy_tokens else f"the first {self.greedy_same} are"
        said = [
            f"{self.engine} read {self.windows} windows ({self.tokens:,} tokens) of {self.source}.",
            f"Its logits differ from groundling's by at most {self.largest_difference:.2g} ({allowed}). "
            f"Its loss there: {self.engine_loss:.5f}; groundling's: {self.loss:.5f}.",
            f"Of {self.greedy_tokens} tokens written greedily, {same} the same.",
        ]
        if self.encoded_tokens is not None:
            said.append(f"Its tokenizer gave {self.encoded_tokens:,} tokens of text the same ids.")
        return said


def parity_inputs(model: GPT, tokenizer: Tokenizer, validation: Tokens | None) -> ParityInputs:
    """Windows of the validation part, evenly spread; random tokens where the text is not here any more."""
    T = min(model.config.block_size, _LONGEST_WINDOW)
    if validation is None or len(validation) < 8:
        rng = np.random.default_rng(0)
        return ParityInputs(rng.integers(model.vocab_size, size=(_WINDOWS, T + 1)), "", "random tokens")
    T = min(T, len(validation) - 1)
    starts = np.unique(np.linspace(0, len(validation) - T - 1, _WINDOWS).astype(np.int64))
    text = tokenizer.decode(validation.read(0, min(len(validation), _ENCODED)))
    return ParityInputs(validation.windows(starts, T + 1), text.replace(END_OF_TEXT, ""), "the validation text")


@torch.inference_mode()
def check_parity(
    model: GPT, tokenizer: Tokenizer, engine: ExternalEngine, about: ParityInputs, *, rounded: bool
) -> ParityReport:
    """Compare `model` with `engine`. Raises Mismatch, in a sentence, beyond the tolerance."""
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
    same = _agreeing(model, prompt, own, engine.greedy(prompt, n), 2 * engine.tolerance)
    ids = engine.encode(about.text) if about.text else None
    proof = ParityReport(
        engine.name, about.source, len(about.windows), about.windows[:, :-1].size, difference,
        None if rounded else engine.tolerance, float(losses[0]), float(losses[1]), n, same, tokenizer.decode(own),
        None if ids is None else len(ids),
    )  # fmt: skip
    _judge(proof, ids, about.text, tokenizer)
    return proof


def _judge(proof: ParityReport, ids: list[int] | None, text: str, tokenizer: Tokenizer) -> None:
    wrong = ""
    if not math.isfinite(proof.largest_difference):
        wrong = "its logits are not finite"
    elif proof.tolerance is None and abs(proof.engine_loss - proof.loss) > _LOSS_TOLERANCE:
        wrong = (
            f"its loss is {proof.engine_loss:.4f} where ours is {proof.loss:.4f}; rounded weights may cost "
            f"{_LOSS_TOLERANCE} nats at most"
        )
    elif proof.tolerance is not None and proof.largest_difference > proof.tolerance:
        wrong = f"its logits differ by {proof.largest_difference:.2g}, and {proof.tolerance:.2g} is allowed"
    elif proof.tolerance is not None and proof.greedy_same < proof.greedy_tokens:
        wrong = f"of its greedy text only the first {proof.greedy_same} tokens are ours"
    elif ids is not None and ids != (own := tokenizer.encode(text, "skip")):
        place = next((i for i, (a, b) in enumerate(zip(ids, own, strict=False)) if a != b), min(len(ids), len(own)))
        wrong = (
            f"its tokenizer gives other ids from token {place:,} on, near {tokenizer.decode(own[place : place + 8])!r}"
        )
    if wrong:
        raise Mismatch(f"{proof.engine} does not compute the same: {wrong}. Nothing was exported.")


def _agreeing(model: GPT, prompt: list[int], own: list[int], theirs: list[int], tie: float) -> int:
    """How many tokens of two greedy texts are the same; all, if they part where two tokens are equally likely."""
    for i, token in enumerate(own):
        if i < len(theirs) and theirs[i] == token:
            continue
        if i < len(theirs):
            logits = model(torch.tensor([prompt + own[:i]]))[0, -1]
            if float(logits[token] - logits[theirs[i]]) <= tie:
                return len(own)  # what follows has another beginning, and says nothing
        return i
    return len(own)
