"""Diagnosis: what is wrong with a run, how you can tell, and what to do.

Each rule reads figures that the run has logged, and quotes them. A rule that is not sure reports nothing. Tests plant
each fault in a small run, and check that healthy runs have no findings. Thresholds that are a judgement have names.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import compress

import numpy as np

from groundling.analysis import tuning_diagnosis
from groundling.analysis.findings import Finding, Kind
from groundling.analysis.history import History

_CLEAR = 0.01  # nats: a smaller rise of the validation loss counts as noise
_SLOPE = 0.005  # a fall by less than this share of the loss counts as level
_ENOUGH = 60  # steps: before, it is too early to judge learning
_SPIKE = 0.6  # nats above the mean of the steps before: far more than batches differ by
_MARGIN = 0.05  # nats: a baseline is beaten if the loss is lower by this
_GAP = 0.35  # nats between validation and training loss on unseen text: more means another kind of text
_LEAKED = 0.2  # share of the validation part that is also in the training part; manuals have a tenth by nature
_TOKEN_SPREAD = 1.8  # nats: about the standard deviation of a token's loss


def diagnose(history: History) -> list[Finding]:
    """All problems of a run, the worst first. Empty if the run is healthy or too young to tell."""
    return [finding for rule in _rules(history) for finding in rule(history)]


def verdict(history: History) -> str:
    """How a run went, in a few sentences: its problems, or else whether more steps would help. For a post-training
    task, also what it reached."""
    found = " ".join(map(str, diagnose(history)))
    if history.task == "pretraining":
        return found or outcome(history)
    return f"{outcome(history)} {found}".strip()


def outcome(history: History) -> str:
    """What a run reached, and whether more steps would help, whatever its problems."""
    losses, evaluated = history.validation, history.evaluated
    if words := tuning_diagnosis.outcome(history):
        return words
    if len(losses) < 2:
        return "Too few evaluations to say how it went."
    # A run that ends by the clock may have two evaluations a few steps apart, with no change between them.
    earlier = evaluated <= evaluated[-1] - np.diff(evaluated).max() / 2
    if losses[earlier][-1] - losses[-1] > _SLOPE * losses[-1]:
        return "Still learning when it ended: more steps would lower the loss further."
    return "The validation loss has levelled off: at these settings, more steps would change little."


def standing(loss: float, milestones: Sequence[float]) -> str:
    """Which n-gram models a loss beats, in words. `milestones[n]` is the n-gram model's loss. Empty if unknown."""
    if len(milestones) < 3:
        return ""
    best = int(np.argmin(milestones))
    beaten = [n for n in range(best + 1) if loss < milestones[n]]
    if not beaten:
        return "no better than random guessing"
    if beaten[-1] == best:
        return "better than every n-gram model of this text" + (f" (best: {best}-gram)" if best else "")
    return f"better than {_baseline(beaten[-1])}, not yet as good as {_baseline(beaten[-1] + 1)}"


def _baseline(n: int) -> str:
    names = {0: "random guessing", 1: "the 1-gram model (token frequencies)", 2: "the 2-gram model (token pairs)"}
    return names.get(n, f"the {n}-gram model")


def _diverged(h: History) -> Iterator[Finding]:
    if h.diverged is not None:
        cause = h.diverged_by or "the loss or the gradient stopped being a finite number"
        yield Finding(
            "diverged",
            f"at step {h.diverged:,}, {cause}. Learning rate {h.rate_at(h.diverged):.2g}, training loss before "
            f"{h.loss_before(h.diverged):.3f}"
            + (f"; {len(h.rolled_back)} rollbacks did not help." if h.rolled_back else "."),
            "Start again with a tenth of the learning rate or a longer warm-up. In float16, try --dtype float32.",
        )


def _seeing_the_future(h: History) -> Iterator[Finding]:
    if h.sees_future:
        yield Finding(
            "seeing the future",
            "changing a token changes the model's predictions for the positions before it.",
            "Its losses mean nothing, and it cannot generate text: the causal mask is broken.",
        )


def _leaking_validation(h: History) -> Iterator[Finding]:
    if h.leakage is not None and h.leakage >= _LEAKED:
        yield Finding(
            "leaking validation",
            f"{h.leakage:.0%} of the validation part is also in the training part, word for word.",
            "So the validation loss measures memorization. Remove the duplicates: "
            f"`{h.inspect_command}` shows the passages.",
        )


def _too_good(h: History) -> Iterator[Finding]:
    """Less than a third of the best n-gram model's loss in the first epoch."""
    if not h.milestones or h.n_steps < _ENOUGH or h.sees_future:
        return
    best, first_epoch = min(h.milestones), h.recent_loss(h.training_tokens // h.tokens_per_step)
    if first_epoch is not None and first_epoch < best / 3:
        yield Finding(
            "too good to be true",
            f"in the first epoch the training loss was {first_epoch:.2f} nats per token, far below the best n-gram "
            f"model's {best:.2f}.",
            f"Either the text repeats itself (see `{h.inspect_command}`), or the model can see the answers: a broken "
            "causal mask, or targets that are not shifted by one.",
        )


def _unlike_validation(h: History) -> Iterator[Finding]:
    """In the first epoch all text is new, in training as in validation: the losses should agree."""
    gaps = [
        (step, validation, training)
        for step, validation in zip(h.evaluated.tolist(), h.validation.tolist(), strict=True)
        if step * h.tokens_per_step <= h.training_tokens and (training := h.recent_loss(step)) is not None
    ]
    if gaps and gaps[-1][1] - gaps[-1][2] > _GAP and not list(_too_good(h)):
        step, validation, training = gaps[-1]
        yield Finding(
            "unlike validation",
            f"at step {step:,}, in the first epoch, the validation loss was {validation:.2f} and the training loss "
            f"{training:.2f}: the validation part (the end of the text) is a different kind of text.",
            "Shuffle the documents, or choose a --val-fraction that gives both parts the same kinds of text.",
        )


def _small_validation(h: History) -> Iterator[Finding]:
    noise = _TOKEN_SPREAD / math.sqrt(max(h.validation_tokens, 1))
    if noise > 0.04 and not h.metric:
        yield Finding(
            "small validation",
            f"the validation part has {h.validation_tokens:,} tokens: its loss is uncertain by about ±{noise:.2f}.",
            "Ignore smaller differences between runs, or use a longer text or a larger --val-fraction.",
        )


def _not_learning(h: History) -> Iterator[Finding]:
    """No better than a 1-gram model, after enough steps. The learning rate may say why."""
    if not _is_stuck(h):
        return
    evidence = (
        f"after {h.n_steps:,} steps the training loss is {h.final_loss:.2f}; a 1-gram model (token frequencies) has "
        f"{h.one_gram:.2f}"
    )
    ratio = h.peak_rate / h.usual_rate
    if ratio >= 4 or ratio <= 1 / 8:
        kind: Kind = "rate too high" if ratio >= 4 else "rate too low"
        yield Finding(kind, f"{evidence}; {_against_usual(h)}.", f"Try --learning-rate {h.usual_rate:.1g}.")
    else:
        yield Finding(
            "not learning",
            f"{evidence}. The learning rate of {h.peak_rate:.2g} is a usual one.",
            f"Check the text with `{h.inspect_command}`: noise cannot be learned. If the text is fine, the model or "
            "its targets are broken: check that the model can memorize a single batch.",
        )


def _against_usual(h: History) -> str:
    ratio = h.peak_rate / h.usual_rate
    if not ratio:
        return "the learning rate is 0"
    times = f"{ratio:.0f} times" if ratio >= 1 else f"1/{1 / ratio:.0f} of"
    return f"the learning rate of {h.peak_rate:.2g} is {times} the usual one for this model width"


def _is_stuck(h: History) -> bool:
    """Whether it is less than a tenth of the way from the 1-gram to the 2-gram model."""
    if len(h.milestones) < 3 or h.n_steps < _ENOUGH:
        return False
    return h.final_loss > h.one_gram - 0.1 * max(h.milestones[1] - h.milestones[2], 0) - 0.01


def _rate_too_high(h: History) -> Iterator[Finding]:
    """A rollback that helped; or spikes; or a training loss that rose; or a rate five times the usual one."""
    if h.diverged is not None or _is_stuck(h):
        return
    if h.rolled_back:
        last = h.rolled_back[-1]
        evidence = (
            f"at step {last['step']:,}, {last['cause']}. Training rolled back to step {last['to']:,} and continued at "
            f"{last['rate_share']:.3g} times the learning rates you set."
        )
        advice = "It recovered. In a new run, start with such a learning rate or use a longer warm-up."
    elif h.n_steps < _ENOUGH:
        return
    elif spikes := h.spikes(_SPIKE):
        step, before, after = max(spikes, key=lambda spike: spike[2] - spike[1])
        rank = f" (the largest of {len(spikes)} jumps)" if len(spikes) > 1 else ""
        evidence = (
            f"the training loss jumped from {before:.2f} to {after:.2f} at step {step:,}{rank}, at a learning rate of "
            f"{h.rate_at(step):.2g}."
        )
        advice = f"Try --learning-rate {h.peak_rate / 3:.1g}, or a longer warm-up."
    elif list(_overfitting(h)):
        return
    elif h.final_loss > h.lowest_loss + 0.15 + h.noise:
        evidence = f"the training loss rose from {h.lowest_loss:.2f} to {h.final_loss:.2f} and stayed there."
        advice = f"Try --learning-rate {h.peak_rate / 3:.1g}."
    elif h.peak_rate >= 5 * h.usual_rate:
        evidence = (
            f"{_against_usual(h)}, and probably the reason why the training loss is as high as {h.final_loss:.2f}."
        )
        advice = f"Try --learning-rate {h.usual_rate:.1g}; with Muon, also --matrix-learning-rate 0.02."
    else:
        return
    yield Finding("rate too high", evidence, advice)


def _rate_too_low(h: History) -> Iterator[Finding]:
    """Worse than the 2-gram model after many steps, at a rate far below the usual one."""
    if h.n_steps < 2 * _ENOUGH or _is_stuck(h) or len(h.milestones) < 3 or h.final_loss < h.milestones[2] - _MARGIN:
        return
    if h.peak_rate <= h.usual_rate / 8:
        yield Finding(
            "rate too low",
            f"after {h.n_steps:,} steps the training loss is {h.final_loss:.2f}, still falling; {_against_usual(h)}.",
            f"Try --learning-rate {h.usual_rate:.1g}.",
        )


def _decayed_too_early(h: History) -> Iterator[Finding]:
    """Many steps at almost no learning rate, although the loss was still falling before them."""
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
            f"twentieth of its peak, although the training loss was still falling by {fell:.2f} in {n:,} steps.",
            "The schedule should end with the run: train again with the --steps you want, or with --minutes.",
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
            f"since step {h.evaluated[best]:,} ({h.epochs(h.evaluated[best]):.1f} epochs) the validation loss rose by "
            f"{rise:.3f}, while the training loss is down at {training:.3f}.",
            f"Step {h.evaluated[best]:,} is kept as the best checkpoint. "
            + (
                "More text, more --dropout or a smaller model would help."
                if h.task == "pretraining"
                else "More examples or fewer --epochs would help."
            ),
        )


def _exhausted(h: History) -> Iterator[Finding]:
    """After several epochs, the training loss still falls but the validation loss does not."""
    late = h.evaluated >= 0.6 * h.n_steps_done
    if late.sum() < 3 or list(_overfitting(h)):
        return
    losses = h.validation[late]
    trained = [loss for loss in compress(h.training, late) if loss is not None]
    epochs = h.epochs(h.n_steps_done)
    level = losses[0] - losses[-1] < _SLOPE * losses[-1]
    if level and epochs > 3 and len(trained) > 1 and trained[0] - trained[-1] > 2 * _SLOPE * trained[-1]:
        yield Finding(
            "exhausted text",
            f"after {epochs:.0f} epochs, the validation loss has been level at {losses[-1]:.3f} since step "
            f"{h.evaluated[late][0]:,}, while the training loss kept falling to {trained[-1]:.3f}.",
            "The model has learned what it can from this text: more text helps, more steps do not.",
        )


def _too_large(h: History) -> Iterator[Finding]:
    """Fewer tokens seen than a fifth of its parameters, and worse than the best n-gram model."""
    seen = h.n_steps_done * h.tokens_per_step
    if not h.milestones or h.n_steps < _ENOUGH or _is_stuck(h) or list(_rate_too_low(h)) or list(_rate_too_high(h)):
        return
    if seen < h.parameters / 5 and h.final_loss > min(h.milestones):
        yield Finding(
            "too large for its time",
            f"its {h.parameters / 1e6:.1f} million parameters saw only {seen / 1e6:.1f} million tokens, and its loss "
            f"of {h.final_loss:.2f} is worse than the best n-gram model's {min(h.milestones):.2f}.",
            f"A smaller model gets further in the same time: `{h.train_command}` picks one.",
        )


_RULES = (
    _diverged, _seeing_the_future, _leaking_validation,
    _too_good, _unlike_validation, _small_validation, _not_learning, _rate_too_high,
    _rate_too_low, _decayed_too_early, _overfitting, _exhausted, _too_large,
)  # fmt: skip
_TUNED = {
    "sft": (_small_validation, _rate_too_high, _overfitting),
    "distill": (_small_validation,),  # its training loss compares with a teacher, and so with nothing else
}


def _rules(history: History) -> Iterable[Callable[[History], Iterator[Finding]]]:
    if history.task == "pretraining":
        return _RULES
    return (_diverged, _seeing_the_future, *_TUNED.get(history.task, ()), *tuning_diagnosis.RULES)
