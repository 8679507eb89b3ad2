"""What is wrong with a post-training run, and what it reached, from the figures that its task logs.

As in diagnosis.py, a rule that is not sure reports nothing. The thresholds are judgements where nothing else is said.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from groundling.analysis.findings import Finding
from groundling.analysis.history import History, Series

_ENOUGH = 20  # logged steps: before, it is too early to judge
_NO_SIGNAL = 0.1  # share of groups: of 32 groups, fewer than four move the weights
_LEARNED = 0.9  # reward of a task: from there on, few groups can have a signal, and little entropy is needed
_COLLAPSED = 0.2  # share of the entropy at the start
_CUT, _NEVER = 0.2, 0.9  # share of replies
_DISAGREE = 0.02  # nats: both run the same weights, so only rounding may tell them apart
_RISE = 0.1  # of a reward from 0 to 1
_FLAT = 0.2  # a rise by less than this share of the training reward's rise counts as flat
_DROP = 0.05  # of an accuracy; the validation prompts of a task are 256, whose standard error is 0.03
_FAR = 0.5  # nats per token: tokens are 1.6 times as likely as they were under the parent
_ALWAYS, _BEFORE = 0.95, 0.7  # calls per reply, at the end and at the start
_GUESSING = 0.55  # accuracy of pairs; 0.5 is chance
_LESS_LIKELY = 0.1  # share of the log-probability at the start, and at least a nat


def outcome(h: History) -> str:
    """What the run reached, in one or two sentences. Empty where the curves of a loss say it better."""
    if h.task == "pretraining":
        return ""
    score = h.scored.get(h.metric or "token_accuracy")
    if score is None or len(score.values) < 2:
        return ""
    match h.metric:
        case "accuracy":
            what = "The share of right answers to unseen prompts"
            return f"{what} {_course(score, percent=True)}. {_trend(score)}".strip()
        case "reward":
            return f"The mean reward of replies to unseen prompts {_course(score)}. {_trend(score)}".strip()
        case "preference loss" | "reward loss" if "accuracy" in h.scored:
            who = "reward model" if h.task == "reward" else "model"
            right = h.scored["accuracy"]
            return f"Of unseen pairs, the {who} ranks {right.last:.0%} as people did (guessing: 50%)."
        case "":
            losses, best = h.validation, int(np.argmin(h.validation))
            return (
                f"The validation loss fell from {losses[0]:.3f} to {losses[best]:.3f} at step {h.evaluated[best]:,}, "
                f"where {score.values[best]:.0%} of the replies' tokens are the model's own first choice."
                if best
                else f"The validation loss rose from {losses[0]:.3f} to {losses[-1]:.3f}."
            )
    return ""


def _course(score: Series, percent: bool = False) -> str:
    first, best, last = (
        f"{value:.1%}" if percent else f"{value:.3g}" for value in (score.first, float(score.values.max()), score.last)
    )
    at = int(score.steps[int(np.argmax(score.values))])
    since = "before training" if score.steps[0] == 0 else f"at step {score.steps[0]:,}"
    peak = f" (best: {best} at step {at:,})" if best != last else ""
    return (f"stayed at {last}" if first == last else f"went from {first} {since} to {last}") + peak


def _trend(score: Series) -> str:
    """Whether more steps would help: whether the last third of the evaluations still rose. Empty if nothing did."""
    third = max(1, len(score.values) // 3)
    recent, spread = score.last - float(score.values[-1 - third]), float(np.ptp(score.values))
    if score.last <= score.first:
        return ""
    if spread and recent > 0.1 * spread:
        return "It was still rising: more steps may help."
    return "It has levelled off: at these settings, more steps would change little."


def _figure(h: History, name: str) -> Series | None:
    """A figure of the steps, if there are enough of them to judge."""
    found = h.figures.get(name)
    return found if found is not None and len(found.values) >= _ENOUGH else None


def _sampler_disagrees(h: History) -> Iterator[Finding]:
    gap = _figure(h, "sampling_gap")
    if gap is not None and gap.values.mean() > _DISAGREE:
        yield Finding(
            "sampler and trainer disagree",
            f"the log-probabilities of sampled tokens differ by {gap.values.mean():.3f} nats on average between "
            "sampling and training. They should be the same.",
            "Use --dtype float32, so that both compute alike.",
        )


def _cut(h: History) -> Iterator[Finding]:
    cut = _figure(h, "cut")
    if cut is None or cut.end <= _CUT:
        return
    if cut.end > _NEVER:
        yield Finding(
            "answers never end",
            f"in the last steps, {cut.end:.0%} of the replies were cut off before they ended.",
            "The model has not learned to end its turn: fine-tune it on complete replies first, with `groundling sft`.",
        )
    else:
        rewarded = " A reply that is cut off earns nothing." if h.metric == "accuracy" else ""
        yield Finding(
            "answers cut",
            f"in the last steps, {cut.end:.0%} of the replies were cut off before they ended.{rewarded}",
            "Use a larger --max-completion-length, or an easier --level.",
        )


def _is_learned(h: History) -> bool:
    reward = _figure(h, "reward")
    return not h.judged_by_model and reward is not None and reward.end >= _LEARNED


def _entropy_collapsed(h: History) -> Iterator[Finding]:
    entropy = _figure(h, "entropy")
    if entropy is not None and entropy.end < _COLLAPSED * entropy.start and not _is_learned(h):
        yield Finding(
            "entropy collapsed",
            f"the entropy of the next token fell from {entropy.start:.3f} to {entropy.end:.3f} nats: the model repeats "
            "the same replies and no longer explores.",
            "Use a lower --learning-rate, or --beta 0.05, which holds the model near its parent.",
        )


def _no_signal(h: History) -> Iterator[Finding]:
    """Few groups with replies of different reward, although the task is not learned."""
    signal, reward = _figure(h, "signal"), _figure(h, "reward")
    if signal is None or reward is None or signal.end >= _NO_SIGNAL or _is_learned(h):
        return
    began = signal.start < _NO_SIGNAL
    if not began and list(_entropy_collapsed(h)):
        return  # that is why
    when = "from the start" if began else "in the last steps"
    yield Finding(
        "no signal",
        f"{when}, only {signal.end:.0%} of the groups had replies with different rewards (mean reward "
        f"{reward.end:.2f}). The others teach nothing.",
        "Fine-tune on worked examples first (`groundling sft`), use an easier --level, or more --num-generations.",
    )


def _worse(h: History) -> Iterator[Finding]:
    score = h.scored.get("accuracy") if h.metric == "accuracy" else None
    if score is not None and len(score.values) > 1 and score.last < score.first - _DROP:
        yield Finding(
            "worse than before",
            f"the share of right answers fell from {score.first:.0%} to {score.last:.0%}.",
            "Use a lower --learning-rate.",
        )


def _reward_without_accuracy(h: History) -> Iterator[Finding]:
    """The training reward rose, the score on unseen prompts did not."""
    reward, score = _figure(h, "reward"), h.scored.get(h.metric)
    if h.metric not in ("accuracy", "reward") or reward is None or score is None or len(score.values) < 3:
        return
    rise, rise_unseen = reward.end - reward.start, score.last - score.first
    # Greedy replies may be right before training already; sampled ones then only catch up with them.
    apart = rise > _RISE and reward.end > score.last + _DROP
    clear = apart if h.metric == "accuracy" else rise > 3 * reward.noise > 0
    if clear and rise_unseen < _FLAT * rise:
        yield Finding(
            "reward without accuracy",
            f"the reward of training rose from {reward.start:.2f} to {reward.end:.2f}, but the {h.metric} on unseen "
            f"prompts went from {score.first:.2f} to {score.last:.2f}.",
            "The model learned its training prompts, or a weakness of the reward. Read the replies in the report, use "
            "more prompts, or a higher --beta.",
        )


def _far_from_parent(h: History) -> Iterator[Finding]:
    """Where a model judges, a large distance is how its weaknesses are found. Right answers need no such limit, so
    there it only explains a fall."""
    kl, score = h.scored.get("kl"), h.scored.get(h.metric)
    if kl is None or score is None or kl.last <= _FAR:
        return
    if h.judged_by_model or score.last < score.values.max() - _DROP:
        yield Finding(
            "far from the parent",
            f"the replies' tokens are {kl.last:.2f} nats likelier than under the parent, on average.",
            "If the replies read worse than before, use --beta 0.05 or a lower --learning-rate.",
        )


def _always_calls(h: History) -> Iterator[Finding]:
    calls = _figure(h, "tool_calls")
    if calls is not None and calls.end >= _ALWAYS and calls.start < _BEFORE:
        yield Finding(
            "always calls the tool",
            f"the calls per reply rose from {calls.start:.2f} to {calls.end:.2f}.",
            "That is the safest way to a reward. To have the model compute what it can itself, train without --tool.",
        )


def _no_preference(h: History) -> Iterator[Finding]:
    right, seen = h.scored.get("accuracy"), _figure(h, "accuracy")
    if h.task not in ("dpo", "reward") or right is None or seen is None or right.last >= _GUESSING:
        return
    if seen.end > 0.8:
        cause = f"In training it is {seen.end:.0%}: the pairs are too few to learn from. Use more of them."
    else:
        cause = (
            "Check that the chosen replies are the better ones, and that people could tell. If so, use a higher "
            "--learning-rate or more --epochs."
        )
    yield Finding(
        "no preference", f"of unseen pairs, {right.last:.0%} are ranked as people did; guessing has 50%.", cause
    )


def _chosen_falls(h: History) -> Iterator[Finding]:
    chosen, rejected = h.scored.get("chosen_logprob"), h.scored.get("rejected_logprob")
    if chosen is None or rejected is None or len(chosen.values) < 2:
        return
    fall = chosen.first - chosen.last
    if fall > max(1.0, _LESS_LIKELY * abs(chosen.first)):
        yield Finding(
            "chosen replies less likely",
            f"the log-probability of the chosen replies fell from {chosen.first:.1f} to {chosen.last:.1f}, that of the "
            f"rejected ones from {rejected.first:.1f} to {rejected.last:.1f}. The loss only wants them apart.",
            "Use --anchor 1, which also trains on the chosen replies, or a lower --learning-rate.",
        )


RULES = (
    _sampler_disagrees, _cut, _entropy_collapsed, _no_signal, _worse, _reward_without_accuracy, _far_from_parent,
    _always_calls, _no_preference, _chosen_falls,
)  # fmt: skip
