"""What the files of a run tell about it, in the words and figures of its page."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cached_property
from typing import Any

import numpy as np

from groundling.analysis.diagnosis import Finding, diagnose, standing, verdict
from groundling.analysis.history import History
from groundling.analysis.memorization import COPIED, TrainingText, parts
from groundling.config import GROUPS, Config, flag
from groundling.escape import printable
from groundling.reporting.charts import Chart, Curve, Line, drawn
from groundling.reporting.console import duration
from groundling.reporting.plot import smooth
from groundling.training.events import VALIDATION_LOSS

_SAMPLES = 100  # places of the slider
_SAMPLE_CHARACTERS = 400_000  # of all samples on the page together

Lines = Sequence[Mapping[str, Any]]


class Facts:
    """Everything that the page of a run shows, as its template reads it.

    `record`, `lines`, `samples` and `result` are the run's config.json, metrics.jsonl, samples.jsonl and result.json
    (None where it has not come to its end). Where a sample does not say what it copied, `training_text` is asked, if
    there is one. Raises ValueError if nothing was logged yet.
    """

    def __init__(
        self, reference: str, record: Mapping[str, Any], config: Config, lines: Lines, samples: Lines,
        result: Mapping[str, Any] | None, training_text: TrainingText | None = None,
    ) -> None:  # fmt: skip
        self.steps = _of(lines, "step")
        self.evaluations = _of(lines, "evaluation")
        if not self.steps and not self.evaluations:
            raise ValueError(f"There is nothing to report on {reference} yet: no step has been logged.")
        self.reference, self.record, self.config, self.lines, self.result = reference, record, config, lines, result
        self.history = History.read(lines, config, bool((result or {}).get("sees_future")))
        logged = [*self.steps, *self.evaluations]
        self.last_step = max(line["step"] for line in logged)
        self.elapsed = max(line["elapsed"] for line in logged)
        self.samples = _kept(samples)
        self.samples_in_all = len(samples)
        self.copies = [_copied(sample, training_text) for sample in self.samples]

    @property
    def status(self) -> str:
        """How far it is, such as `finished` or `paused at step 300 of 2,000`."""
        goal = f"of {'about ' if self.config.training.minutes else ''}{self.config.training.steps:,}"
        if self.result is not None:
            return "finished"
        last = next(x for x in reversed(self.lines) if x["event"] in ("step", "evaluation", "diverged", "paused"))
        said = {"diverged": "diverged", "paused": "paused"}.get(last["event"], "not finished: last logged")
        return f"{said} at step {last['step']:,} {goal}"

    @property
    def began(self) -> str:
        created = self.record.get("created")
        if not created:
            return ""
        moment = datetime.fromisoformat(created)
        return f"{moment.day} {moment:%B %Y, %H:%M} UTC"

    @cached_property
    def best(self) -> Mapping[str, Any] | None:
        """The best evaluation, without the one before any step. None if there was none."""
        return next((line for line in reversed(self.evaluations) if line["best"]), None)

    @property
    def figures(self) -> list[tuple[str, str]]:
        """The key figures: value, and what it is."""
        best, goal = self.best, self.config.training.steps
        found = list[tuple[str, str]]()
        if best:
            unit = "" if "metric" in best else ", nats a token"
            found.append((f"{best['validation_loss']:.4f}", f"best {best.get('metric', VALIDATION_LOSS)}{unit}"))
            if best["bits_per_byte"] is not None:
                found.append((f"{best['bits_per_byte']:.3f}", "bits per byte there"))
        of = "" if self.config.training.minutes or goal == self.last_step else f" of {goal:,}"
        found += [
            (f"{self.last_step:,}{of}", f"steps, best at {best['step']:,}" if best else "steps"),
            (duration((self.result or {}).get("elapsed", self.elapsed)), "in all"),
            (f"{self.history.parameters:,}", "parameters"),
        ]
        if self.history.training_tokens:
            found.append((f"{self.history.epochs(self.last_step):.1f}", "passes over the text"))
        if self.steps:
            speed = float(np.median([line["tokens_per_second"] for line in self.steps]))
            found.append((f"{speed:,.0f}", "tokens a second"))
        if self.copies and self.copies[-1]["share"] is not None:
            found.append((f"{100 * self.copies[-1]['share']:.0f} %", "of the last sample is copied"))
        return found

    @cached_property
    def whole(self) -> History:
        """Of all generations, where the history is the last one's."""
        return History.read(self.lines, self.config, whole=True) if self.generations else self.history

    @cached_property
    def generations(self) -> list[str]:
        """A sentence for each but the first."""
        births = _of(self.lines, "generation")
        return [
            f"After step {line['step']:,} generation {line['generation']} begins, a new model that learns from it too."
            for line in births
        ]

    @property
    def standing(self) -> str:
        return standing(self.best["validation_loss"], self.history.milestones) if self.best else ""

    @cached_property
    def findings(self) -> list[Finding]:
        return diagnose(self.history)

    @property
    def verdict(self) -> str:
        """Whether more steps would help, where nothing is wrong."""
        return verdict(self.history, self.findings)

    @property
    def charts(self) -> dict[str, dict[str, Any]]:
        """By name, those that have something to draw."""
        every = [self._loss(), self._rate(), self._speed(), *self._copying()]
        return {chart.key: shown for chart in every if (shown := drawn(chart, self.last_step))}

    def _loss(self) -> Chart:
        history, finite = self.whole, np.isfinite(self.whole.losses)
        steps, losses = history.steps[finite].astype(float), history.losses[finite]
        milestones = list(history.milestones)
        best = self.best
        lines = []
        if milestones:
            lowest = int(np.argmin(milestones))
            lines = [Line(milestones[n], f"{_gram(n)} {milestones[n]:.2f}") for n in range(lowest + 1)]
        known = [*history.validation, *milestones[:1], *losses[:1]]
        said = "Training and validation loss over steps."
        if best:
            said += f" Best validation loss {best['validation_loss']:.4f} at step {best['step']:,}."
        said = " ".join([said, *self.generations])
        return Chart(
            "loss", "Loss", "nats a token",
            [
                Curve("each step", "raw", steps, losses),
                Curve("training", "training", steps, smooth(losses)),
                Curve("validation", "validation", history.evaluated.astype(float), history.validation),
            ],
            said, "{:.4g}".format, lines,
            (best["step"], best["validation_loss"]) if best else None,
            # A spike of a run that blew up would press all else flat.
            high=min(max(known + losses.tolist()), 2 * max(known)) if known else None,
        )  # fmt: skip

    def _rate(self) -> Chart:
        whose = "AdamW’s" if self.config.training.optimizer == "muon" else ""
        curve = Curve("learning rate", "plain", self.whole.steps.astype(float), self.whole.rates)
        said = f"Learning rate over steps, at most {self.whole.peak_rate:.2g}."
        return Chart("rate", "Learning rate", whose, [curve], said, "{:.3g}".format, low=0.0)

    def _speed(self) -> Chart:
        speeds = [line["tokens_per_second"] for line in self.steps]
        curve = Curve("speed", "plain", [line["step"] for line in self.steps], speeds)
        said = "Tokens a second over steps."
        return Chart("speed", "Speed", "tokens a second", [curve], said, "{:,.0f}".format, low=0.0)

    def _copying(self) -> list[Chart]:
        known = [copy for copy in self.copies if copy["share"] is not None]
        steps = [copy["step"] for copy in known]
        shares, longest = [100 * copy["share"] for copy in known], [copy["longest"] for copy in known]
        return [
            Chart(
                "copied", "Copied", "per cent of a sample",
                [Curve("copied", "validation", steps, shares)],
                "Share of the samples that was copied, over steps.", "{:.3g}".format,
                low=0.0, high=max([5.0, *shares]),
            ),
            Chart(
                "longest", "Longest copied span", "characters", [Curve("longest", "validation", steps, longest)],
                "Length of the longest span that stands in the training text, over steps.", "{:,.0f}".format,
                [Line(COPIED, f"{COPIED}: copied")], low=0.0, high=max([COPIED + 5, *longest]),
            ),
        ]  # fmt: skip

    @property
    def slides(self) -> list[dict[str, Any]]:
        """The samples, one for each place of the slider: step, a line about it, prompt and pieces of text, each with 0,
        or 1 or 2 in turn where it is copied."""
        return [self._slide(sample, copy) for sample, copy in zip(self.samples, self.copies, strict=True)]

    def _slide(self, sample: Mapping[str, Any], copy: Mapping[str, Any]) -> dict[str, Any]:
        step = sample["step"]
        scored = next((line for line in reversed(self.evaluations) if line["step"] <= step), None)
        said = f"step {step:,}"
        if scored and scored["step"] == step:
            said += f" · {duration(scored['elapsed'])} · validation loss {scored['validation_loss']:.3f}"
        if copy["share"] is not None:
            said += f" · {100 * copy['share']:.0f} % copied, longest span {copy['longest']:,} characters"
        pieces, number = [], 0
        for piece, span in parts(sample["text"], [slice(*span) for span in copy["spans"]]):
            number += span is not None
            pieces.append([printable(piece), 1 + number % 2 if span else 0])
        return {"step": step, "said": said, "prompt": printable(sample["prompt"].lstrip("\n")), "pieces": pieces}

    @property
    def unsearched(self) -> bool:
        """Whether there is a sample of which it is not known what it copied."""
        return any(copy["share"] is None for copy in self.copies)

    @property
    def corpus(self) -> dict[str, Any]:
        """The text as the run's record has it, with the sizes of its two parts."""
        started = next(iter(_of(self.lines, "started")), {})
        return {"training_tokens": 0, "validation_tokens": 0} | self.record["corpus"] | started.get("corpus", {})

    @property
    def ladder(self) -> list[dict[str, Any]]:
        """What counting reaches, and this model among it, from the highest loss to the lowest; bars in per cent."""
        milestones = list(self.history.milestones)
        if not milestones:
            return []
        rows = [(_gram(n), loss, False) for n, loss in enumerate(milestones[: int(np.argmin(milestones)) + 1])]
        if self.best:
            rows.append(("this model", self.best["validation_loss"], True))
        highest = max(loss for _, loss, _ in rows)
        return [
            {"name": name, "loss": loss, "width": 100 * loss / highest, "own": own}
            for name, loss, own in sorted(rows, key=lambda row: -row[1])
        ]

    @property
    def inspect_command(self) -> str:
        """What gives the whole check-up, of the same tokens."""
        text = self.config.text
        words = ["groundling", "inspect", self.config.corpus]
        if text.tokenizer != "char":
            words += ["--tokenizer", text.tokenizer]
        if text.tokenizer == "bpe":
            words += ["--vocab-size", str(text.vocab_size)]
        return shlex.join(words)

    @property
    def plan(self) -> list[tuple[str, str, str]]:
        """What was planned and what came of it; nothing where there was no plan."""
        plan = next(iter(_of(self.lines, "planned")), None)
        if plan is None:
            return []
        result, best = self.result or {}, self.best
        loss = "–" if plan["loss"] is None else f"{plan['loss']:.2f} ({plan['low']:.2f} to {plan['high']:.2f})"
        rows = [
            ("time", duration(60 * plan["minutes"]), duration(result.get("elapsed", self.elapsed))),
            ("steps", f"{plan['steps']:,}", f"{self.last_step:,}"),
            ("passes over the text", f"{plan['epochs']:.1f}", f"{self.history.epochs(self.last_step):.1f}"),
            ("validation loss", loss, f"{best['validation_loss']:.2f}" if best else "–"),
        ]
        if plan.get("generations", 1) > 1:
            rows.append(("generations", f"{plan['generations']}", f"{len(_of(self.lines, 'generation')) + 1}"))
        memory = f"{result['peak_memory'] / 1e9:.1f} GB" if result else "–"
        return [*rows, ("memory", f"{plan['memory'] / 1e9:.1f} GB", memory)]

    @property
    def forecast(self) -> str:
        """Whether the loss came out as forecast, once it is known."""
        plan, best = next(iter(_of(self.lines, "planned")), None), self.best
        if plan is None or plan["loss"] is None or best is None or self.result is None:
            return ""
        loss = best["validation_loss"]
        where = "within" if plan["low"] <= loss <= plan["high"] else "below" if loss < plan["low"] else "above"
        return f"The loss came out {where} the range that was forecast."

    @property
    def parameters(self) -> list[tuple[str, int]]:
        """Those of the model, part by part."""
        started = next(iter(_of(self.lines, "started")), {})
        return [(name, count) for name, count in started.get("parameters", [])]

    @property
    def machine(self) -> list[tuple[str, str]]:
        """Where it ran, and with what."""
        said = [(name, str(value)) for name, value in self.record["machine"].items() if name != "reasons"]
        peak = [("peak memory", f"{self.result['peak_memory'] / 1e9:.1f} GB")] if self.result else []
        return [*said, *peak, *self.record["versions"].items()]

    @property
    def settings(self) -> list[tuple[str, list[tuple[str, str, bool]]]]:
        """Group by group: flag, value, and whether it was set by the plan and not as asked for."""
        asked = self.record.get("requested", self.record["settings"])
        return [
            (group, [(flag(k), _shown(v), asked.get(group, {}).get(k) != v) for k, v in values.items()])
            for group in GROUPS
            if (values := self.record["settings"][group])
        ]


def _of(lines: Lines, kind: str) -> list[Mapping[str, Any]]:
    return [line for line in lines if line["event"] == kind]


def _kept(samples: Lines) -> Lines:
    """Evenly spread, the first and the last among them, and no more than a page can hold."""
    longest = max((len(sample["text"]) for sample in samples), default=0)
    n = min(len(samples), _SAMPLES, max(2, _SAMPLE_CHARACTERS // max(longest, 1)))
    return [samples[i] for i in np.linspace(0, len(samples) - 1, n).round().astype(int)] if n else []


def _copied(sample: Mapping[str, Any], training_text: TrainingText | None) -> dict[str, Any]:
    """Share, longest span and places of the copied ones: as the sample tells, or else as the text does."""
    share, longest, spans = (sample.get(key) for key in ("copied_share", "longest_copy", "copied_spans"))
    if spans is None and training_text is not None:
        found = training_text.report(sample["text"])
        share, longest, spans = found.share, found.longest, [(span.start, span.stop) for span in found.spans]
    return {"step": sample["step"], "share": share, "longest": longest, "spans": spans or []}


def _gram(n: int) -> str:
    return "chance" if n == 0 else f"{n}-gram"


def _shown(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "–"}[value]
    return f"{value:,}" if isinstance(value, int) else repr(value) if isinstance(value, str) else f"{value:g}"
