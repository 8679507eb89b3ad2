"""What the curves of a run say, in plain words: what is wrong, how one sees it, and what to do.

Each rule looks at figures that the run has logged, and names them. A rule that is not sure says nothing: tests plant
each fault in small runs, and hold that healthy ones are told nothing. Where a threshold is a judgement, it is a named
constant here.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from groundling.analysis.history import History

Kind = Literal[
    "diverged", "seeing the future", "leaking validation",
    "too good to be true", "unlike validation", "small validation", "not learning",
    "rate too high", "rate too low", "decayed too early", "overfitting", "exhausted text", "too large for its time",
]  # fmt: skip

_CLEAR = 0.01  # nats: a rise of the validation loss beyond this is not taken for noise
_SLOPE = 0.005  # a fall of less than this share of the loss since the evaluation before is called level
_ENOUGH = 60  # steps, before which nothing is said about learning
_SPIKE = 0.6  # nats above what the steps before had: far beyond what batches differ by
_MARGIN = 0.05  # nats: a milestone is reached where the loss is lower than it by no less
_GAP = 0.35  # nats between what is read for the first time in training and in validation: another kind of text
_LEAKED = 0.2  # share of the validation part that also stands in the training part; manuals have a tenth by nature
_PER_CHARACTER_SPREAD = 1.8  # nats: about the standard deviation of a token's loss, for the validation part's noise


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong. `evidence` gives the figures, `advice` what to do."""

    kind: Kind
    evidence: str
    advice: str

    def __str__(self) -> str:
        return f"{self.kind.capitalize()}: {self.evidence} {self.advice}"


def diagnose(history: History) -> list[Finding]:
    """Everything that is wrong with a run, the gravest first; nothing if it is healthy or too young to say."""
    return [finding for rule in _RULES for finding in rule(history)]


def verdict(history: History, findings: Sequence[Finding] | None = None) -> str:
    """How a run went, in a few sentences: what `diagnose` finds (or has found: `findings`), or else whether more steps
    would help."""
    findings = diagnose(history) if findings is None else findings
    if findings:
        return " ".join(str(finding) for finding in findings)
    losses, evaluated = history.validation, history.evaluated
    if len(losses) < 2:
        return "Too few evaluations to say how it went."
    # A run that ends by the clock may be evaluated twice within a step, and nothing changes in so short a time.
    earlier = evaluated <= evaluated[-1] - np.diff(evaluated).max() / 2
    if losses[earlier][-1] - losses[-1] > _SLOPE * losses[-1]:
        return "Still learning when it ended: more steps would lower the loss further."
    return "The validation loss has levelled off: at these settings, more steps would change little."


def standing(loss: float, milestones: Sequence[float]) -> str:
    """Where a loss stands among what models that only count reach, such as `beyond letter pairs`; empty if unknown."""
    if len(milestones) < 3:
        return ""
    best = int(np.argmin(milestones))
    passed = [n for n in range(best + 1) if loss < milestones[n]]
    if not passed:
        return "it knows nothing yet"
    if passed[-1] == best:
        return f"beyond all that counting reaches (a {best}-gram model)"
    return f"beyond {_KNOWN.get(passed[-1], f'a {passed[-1]}-gram')}; not yet at what {_goal(passed[-1] + 1)} knows"


_KNOWN = {0: "chance", 1: "how common each token is", 2: "pairs of tokens"}


def _goal(n: int) -> str:
    return {1: "a table of how common each token is", 2: "a table of token pairs"}.get(n, f"a {n}-gram model")


def _diverged(h: History) -> Iterator[Finding]:
    if h.diverged is not None:
        cause = h.diverged_by or "the loss or the gradient stopped being a finite number"
        yield Finding(
            "diverged",
            f"at step {h.diverged:,} {cause}, at a learning rate of {h.rate_at(h.diverged):.2g}"
            + (f", though it went back {len(h.rolled_back)} times" if h.rolled_back else "")
            + f"; the training loss before was {h.loss_before(h.diverged):.3f}.",
            "Start again with a tenth of the learning rate or a longer warm-up; in float16, with --dtype float32.",
        )


def _seeing_the_future(h: History) -> Iterator[Finding]:
    if h.sees_future:
        yield Finding(
            "seeing the future",
            "a change of a later token changes what the model predicts before it.",
            "Its losses mean nothing, and it cannot write: the causal mask is broken.",
        )


def _leaking_validation(h: History) -> Iterator[Finding]:
    if h.leakage is not None and h.leakage >= _LEAKED:
        yield Finding(
            "leaking validation",
            f"{h.leakage:.0%} of the validation part stands word for word in the training part.",
            "Its loss measures memory: `groundling inspect` shows the passages; remove what is there twice.",
        )


def _too_good(h: History) -> Iterator[Finding]:
    """Less than a third of the best n-gram model's loss, before anything was read twice."""
    if not h.milestones or h.n_steps < _ENOUGH or h.sees_future:
        return
    best, first_reading = min(h.milestones), h.mean_loss_until_epoch(1.0)
    if first_reading is not None and first_reading < best / 3:
        yield Finding(
            "too good to be true",
            f"text that it read for the first time cost {first_reading:.2f} nats a token, where the best n-gram model "
            f"of this text needs {best:.2f}.",
            "Either the text repeats itself (see `groundling inspect`), or the answer can be seen: a broken causal "
            "mask, or targets that are not shifted by one.",
        )


def _unlike_validation(h: History) -> Iterator[Finding]:
    """In the first pass over the text everything is new, in training as in validation: the losses should agree."""
    gaps = [
        (step, validation, training)
        for step, validation in zip(h.evaluated.tolist(), h.validation.tolist(), strict=True)
        if step * h.tokens_per_step <= h.training_tokens and (training := h.recent_loss(step)) is not None
    ]
    if gaps and gaps[-1][1] - gaps[-1][2] > _GAP and not list(_too_good(h)):
        step, validation, training = gaps[-1]
        yield Finding(
            "unlike validation",
            f"at step {step:,}, before anything was read twice, the validation loss was {validation:.2f} and the "
            f"training loss {training:.2f}: the end of the text, which validates, is of another kind than the rest.",
            "Mix the documents, or choose --val-fraction so that both parts hold the same kinds of text.",
        )


def _small_validation(h: History) -> Iterator[Finding]:
    noise = _PER_CHARACTER_SPREAD / math.sqrt(max(h.validation_tokens, 1))
    if noise > 0.04:
        yield Finding(
            "small validation",
            f"the validation part has {h.validation_tokens:,} tokens, so that its loss is only known to about "
            f"±{noise:.2f}.",
            "Compare runs by more than that, or use a longer text or a larger --val-fraction.",
        )


def _not_learning(h: History) -> Iterator[Finding]:
    """Not better than how common each token is, though it had the time for it. The learning rate says why."""
    if not _is_stuck(h):
        return
    evidence = (
        f"after {h.n_steps:,} steps the training loss is {h.final_loss:.2f}; knowing how common each token is gives "
        f"{h.one_gram:.2f}"
    )
    ratio = h.peak_rate / h.usual_rate
    if ratio >= 4:
        yield Finding(
            "rate too high",
            f"{evidence}; {_against_usual(h)}.",
            f"Try --learning-rate {h.usual_rate:.1g}.",
        )
    elif ratio <= 1 / 8:
        yield Finding(
            "rate too low",
            f"{evidence}; {_against_usual(h)}.",
            f"Try --learning-rate {h.usual_rate:.1g}.",
        )
    else:
        yield Finding(
            "not learning",
            f"{evidence}, though the learning rate of {h.peak_rate:.2g} is a usual one.",
            "Look at the text with `groundling inspect`: noise cannot be learned. If it is text, the model or its "
            "targets are broken: a single batch must be learnable by heart.",
        )


def _against_usual(h: History) -> str:
    ratio = h.peak_rate / h.usual_rate
    times = f"{ratio:.0f} times" if ratio >= 1 else f"a {1 / ratio:.0f}th of"
    return f"the learning rate of {h.peak_rate:.2g} is {times} what a model of this width usually takes"


def _is_stuck(h: History) -> bool:
    """Whether less than a tenth of the way from single tokens to pairs was made."""
    if len(h.milestones) < 3 or h.n_steps < _ENOUGH:
        return False
    return h.final_loss > h.one_gram - 0.1 * max(h.milestones[1] - h.milestones[2], 0) - 0.01


def _rate_too_high(h: History) -> Iterator[Finding]:
    """It had to go back; or spikes, or a training loss that rises again while the rate is up."""
    if h.rolled_back and h.diverged is None and not _is_stuck(h):
        last = h.rolled_back[-1]
        yield Finding(
            "rate too high",
            f"at step {last['step']:,} {last['cause']}: it went back to step {last['to']:,}, and on at "
            f"{last['rate_share']:.3g} of the learning rates that were set.",
            "It got over that; a new run does better at such rates from the start, or with a longer warm-up.",
        )
    if h.n_steps < _ENOUGH or h.diverged is not None or h.rolled_back or _is_stuck(h):
        return
    spikes = h.spikes(_SPIKE)
    if spikes:
        step, before, after = max(spikes, key=lambda spike: spike[2] - spike[1])
        yield Finding(
            "rate too high",
            f"the training loss jumped from {before:.2f} to {after:.2f} at step {step:,}"
            + (f", and {len(spikes) - 1} more times" if len(spikes) > 1 else "")
            + f", at a learning rate of {h.rate_at(step):.2g}.",
            f"Try --learning-rate {h.peak_rate / 3:.1g}, or a longer warm-up.",
        )
    elif h.final_loss > h.lowest_loss + 0.15 + h.noise and not list(_overfitting(h)):
        yield Finding(
            "rate too high",
            f"the training loss rose from {h.lowest_loss:.2f} to {h.final_loss:.2f} and did not come back.",
            f"Try --learning-rate {h.peak_rate / 3:.1g}.",
        )
    elif h.peak_rate >= 5 * h.usual_rate and not list(_overfitting(h)):
        yield Finding(
            "rate too high",
            f"{_against_usual(h)}, and the training loss, at {h.final_loss:.2f}, is likely to be the worse for it.",
            f"Try --learning-rate {h.usual_rate:.1g}, and with Muon a --matrix-learning-rate of 0.02.",
        )


def _rate_too_low(h: History) -> Iterator[Finding]:
    """Behind letter pairs after hundreds of steps, falling ever on, at a rate far below the usual."""
    if h.n_steps < 2 * _ENOUGH or _is_stuck(h) or len(h.milestones) < 3 or h.final_loss < h.milestones[2] - _MARGIN:
        return
    if h.peak_rate <= h.usual_rate / 8:
        yield Finding(
            "rate too low",
            f"after {h.n_steps:,} steps the training loss is {h.final_loss:.2f}, and falling; {_against_usual(h)}.",
            f"Try --learning-rate {h.usual_rate:.1g}.",
        )


def _decayed_too_early(h: History) -> Iterator[Finding]:
    """A good part of the steps at next to no rate, though the loss was falling when it went."""
    if h.n_steps < 2 * _ENOUGH:
        return
    low = h.rates < 0.05 * h.peak_rate
    low[: int(np.argmax(h.rates))] = False  # not the warm-up
    if low.mean() < 0.25:
        return
    first = int(np.argmax(low))
    n = max(5, h.n_steps // 10)
    fell, after = h.mean_loss(first - 2 * n, first - n) - h.mean_loss(first - n, first), h.mean_loss(first, first + n)
    if fell > 0.02 and after - h.final_loss < fell:
        yield Finding(
            "decayed too early",
            f"from step {h.steps[first]:,} on, for {low.mean():.0%} of the run, the learning rate was below a "
            f"twentieth of its peak, while the training loss was still falling by {fell:.2f} in {n:,} steps.",
            "Let the schedule end with the run: train anew with the number of steps that you want, or with --minutes.",
        )


def _overfitting(h: History) -> Iterator[Finding]:
    if len(h.validation) < 3 or h.n_steps < _ENOUGH or _is_stuck(h) or list(_too_good(h)):
        return
    best = int(np.argmin(h.validation))
    rise = float(h.validation[-1] - h.validation[best])
    training = h.training[-1]
    if rise > _CLEAR and h.evaluated[best] > 0 and training is not None and training < h.validation[best]:
        yield Finding(
            "overfitting",
            f"since step {h.evaluated[best]:,} it goes on learning its training text by heart ({training:.3f}) while "
            f"the validation loss rose by {rise:.3f}, after {h.epochs(h.evaluated[best]):.1f} passes over the text.",
            f"The checkpoint of step {h.evaluated[best]:,} is kept as best; more text, more --dropout or a smaller "
            "model would carry it further.",
        )


def _exhausted(h: History) -> Iterator[Finding]:
    """The text has nothing more to give: read many times, training goes on falling, validation does not."""
    late = h.evaluated >= 0.6 * h.steps[-1] if h.n_steps else np.array([], dtype=bool)
    if late.sum() < 3 or list(_overfitting(h)):
        return
    losses = h.validation[late]
    trained = [loss for loss, is_late in zip(h.training, late, strict=True) if is_late and loss is not None]
    epochs = h.epochs(int(h.steps[-1]))
    level = losses[0] - losses[-1] < _SLOPE * losses[-1]
    if level and epochs > 3 and len(trained) > 1 and trained[0] - trained[-1] > 2 * _SLOPE * trained[-1]:
        yield Finding(
            "exhausted text",
            f"after {epochs:.0f} passes over the text the validation loss has stood at {losses[-1]:.3f} since step "
            f"{h.evaluated[late][0]:,}, while the training loss fell on to {trained[-1]:.3f}.",
            "What this model can learn from this text it has learned: more text helps, more steps do not.",
        )


def _too_large(h: History) -> Iterator[Finding]:
    """Fewer tokens than a fifth of its parameters, and not even at the best n-gram model."""
    seen = h.n_steps_done * h.tokens_per_step
    if not h.milestones or h.n_steps < _ENOUGH or _is_stuck(h) or list(_rate_too_low(h)) or list(_rate_too_high(h)):
        return
    if seen < h.parameters / 5 and h.final_loss > min(h.milestones):
        yield Finding(
            "too large for its time",
            f"its {h.parameters / 1e6:.1f} million parameters saw {seen / 1e6:.1f} million tokens, and its loss of "
            f"{h.final_loss:.2f} is above the {min(h.milestones):.2f} that counting reaches.",
            "In the same time a smaller model gets further: `groundling train --minutes` plans one.",
        )


_RULES = (
    _diverged, _seeing_the_future, _leaking_validation,
    _too_good, _unlike_validation, _small_validation, _not_learning, _rate_too_high,
    _rate_too_low, _decayed_too_early, _overfitting, _exhausted, _too_large,
)  # fmt: skip
