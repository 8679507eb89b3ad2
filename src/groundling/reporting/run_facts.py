"""The figures and sentences of a run's HTML report, from the files of the run."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from functools import cached_property
from typing import Any

import numpy as np

from groundling.analysis.diagnosis import Finding, diagnose, standing, verdict
from groundling.analysis.history import History
from groundling.analysis.memorization import COPIED, TrainingText, parts
from groundling.config import GROUPS, Config, flag
from groundling.escape import command, printable
from groundling.reporting.charts import Chart, Curve, Line, drawn
from groundling.reporting.console import duration
from groundling.reporting.plot import Lines, baselines, smooth
from groundling.training.events import VALIDATION_LOSS

_SAMPLES = 100  # positions of the slider
_SAMPLE_CHARACTERS = 400_000  # of all samples on the page together


class Facts:
    """Everything that the report of a run shows.

    `record`, `lines`, `samples` and `result` are the run's config.json, metrics.jsonl, samples.jsonl and result.json
    (None if it is not finished). `training_text` is searched for samples that do not say what they copied. Raises
    ValueError if no step was logged.
    """

    def __init__(
        self, reference: str, record: Mapping[str, Any], config: Config, lines: Lines, samples: Lines,
        result: Mapping[str, Any] | None, training_text: TrainingText | None = None,
    ) -> None:  # fmt: skip
        self.steps = _of(lines, "step")
        self.evaluations = _of(lines, "evaluation")
        logged = [*self.steps, *self.evaluations]
        if not logged:
            raise ValueError(f"There is nothing to report on {reference} yet: no step has been logged.")
        self.reference, self.record, self.config, self.lines, self.result = reference, record, config, lines, result
        self.history = History.read(lines, config, bool((result or {}).get("sees_future")))
        self.last_step = max(line["step"] for line in logged)
        self.elapsed = (result or {}).get("elapsed", max(line["elapsed"] for line in logged))
        self._started = next(iter(_of(lines, "started")), {})
        self.samples = _selected(samples)
        self.samples_in_all = len(samples)
        self.copies = [_copied(sample, training_text) for sample in self.samples]
        self.parameters: list[tuple[str, int]] = self._started.get("parameters", [])
        self._planned = next(iter(_of(lines, "planned")), None)

    @property
    def status(self) -> str:
        """Such as `finished` or `paused at step 300 of 2,000`."""
        if self.result is not None:
            return "finished"
        last = next(x for x in reversed(self.lines) if x["event"] in ("step", "evaluation", "diverged", "paused"))
        what = last["event"] if last["event"] in ("diverged", "paused") else "not finished: last logged"
        about = "about " if self.config.training.minutes else ""
        return f"{what} at step {last['step']:,} of {about}{self.config.training.steps:,}"

    @property
    def began(self) -> str:
        if not (created := self.record.get("created")):
            return ""
        moment = datetime.fromisoformat(created)
        return f"{moment.day} {moment:%B %Y, %H:%M} UTC"

    @cached_property
    def best(self) -> Mapping[str, Any] | None:
        """The best evaluation after a step, or None."""
        return next((line for line in reversed(self.evaluations) if line["best"]), None)

    @property
    def figures(self) -> list[tuple[str, str]]:
        """The key figures: value and name."""
        best, goal = self.best, self.config.training.steps
        figures = list[tuple[str, str]]()
        if best:
            unit = "" if "metric" in best else ", nats per token"
            figures.append((f"{best['validation_loss']:.4f}", f"best {best.get('metric', VALIDATION_LOSS)}{unit}"))
            if best["bits_per_byte"] is not None:
                figures.append((f"{best['bits_per_byte']:.3f}", "bits per byte at that step"))
        of = "" if self.config.training.minutes or goal == self.last_step else f" of {goal:,}"
        figures += [
            (f"{self.last_step:,}{of}", f"steps, best at {best['step']:,}" if best else "steps"),
            (duration(self.elapsed), "total time"),
            (f"{self.history.parameters:,}", "parameters"),
        ]
        if self.history.training_tokens:
            figures.append((f"{self.history.epochs(self.last_step):.1f}", "epochs"))
        if self.steps:
            speed = float(np.median([line["tokens_per_second"] for line in self.steps]))
            figures.append((f"{speed:,.0f}", "tokens per second"))
        if self.copies and self.copies[-1]["share"] is not None:
            figures.append((f"{100 * self.copies[-1]['share']:.0f} %", "of the last sample is copied"))
        return figures

    @cached_property
    def whole(self) -> History:
        """The history of all generations, where `history` is that of the last one."""
        return History.read(self.lines, self.config, whole=True) if self.generations else self.history

    @cached_property
    def generations(self) -> list[str]:
        """A sentence for each generation but the first."""
        return [
            f"Generation {line['generation']} starts after step {line['step']:,}: a new model, which learns from the "
            "previous one too."
            for line in _of(self.lines, "generation")
        ]

    @property
    def standing(self) -> str:
        return standing(self.best["validation_loss"], self.history.milestones) if self.best else ""

    @cached_property
    def findings(self) -> list[Finding]:
        return diagnose(self.history)

    @property
    def verdict(self) -> str:
        """If there are no findings: whether more steps would help."""
        return verdict(self.history)

    @property
    def charts(self) -> dict[str, dict[str, Any]]:
        """The charts that have something to draw, by name."""
        charts = [self._loss(), self._rate(), self._speed(), *self._copying()]
        return {chart.key: shown for chart in charts if (shown := drawn(chart, self.last_step))}

    def _loss(self) -> Chart:
        history, finite, best = self.whole, np.isfinite(self.whole.losses), self.best
        steps, losses = history.steps[finite], history.losses[finite]
        known = [*history.validation, *history.milestones[:1], *losses[:1]]
        said = "Training and validation loss over steps."
        if best:
            said += f" Best validation loss {best['validation_loss']:.4f} at step {best['step']:,}."
        return Chart(
            "loss", "Loss", "nats per token",
            [
                Curve("each step", "raw", steps, losses),
                Curve("training", "training", steps, smooth(losses)),
                Curve("validation", "validation", history.evaluated, history.validation),
            ],
            " ".join([said, *self.generations]), "{:.4g}".format,
            [Line(loss, f"{name} {loss:.2f}") for name, loss in baselines(history.milestones)],
            (best["step"], best["validation_loss"]) if best else None,
            # The spike of a run that diverged would flatten everything else.
            high=min(max(known + losses.tolist()), 2 * max(known)) if known else None,
        )  # fmt: skip

    def _rate(self) -> Chart:
        unit = "of AdamW" if self.config.training.optimizer == "muon" else ""
        curve = Curve("learning rate", "plain", self.whole.steps, self.whole.rates)
        said = f"Learning rate over steps, at most {self.whole.peak_rate:.2g}."
        return Chart("rate", "Learning rate", unit, [curve], said, "{:.3g}".format, low=0.0)

    def _speed(self) -> Chart:
        speeds = [line["tokens_per_second"] for line in self.steps]
        curve = Curve("speed", "plain", [line["step"] for line in self.steps], speeds)
        said = "Tokens per second over steps."
        return Chart("speed", "Speed", "tokens per second", [curve], said, "{:,.0f}".format, low=0.0)

    def _copying(self) -> list[Chart]:
        known = [copy for copy in self.copies if copy["share"] is not None]
        steps = [copy["step"] for copy in known]
        shares, longest = [100 * copy["share"] for copy in known], [copy["longest"] for copy in known]
        return [
            Chart(
                "copied", "Copied", "% of a sample", [Curve("copied", "validation", steps, shares)],
                "Copied share of each sample over steps.", "{:.3g}".format, low=0.0, high=max([5.0, *shares]),
            ),
            Chart(
                "longest", "Longest copied span", "characters", [Curve("longest", "validation", steps, longest)],
                "Length of the longest copied span over steps.", "{:,.0f}".format,
                [Line(COPIED, f"{COPIED}: copied")], low=0.0, high=max([COPIED + 5, *longest]),
            ),
        ]  # fmt: skip

    @property
    def slides(self) -> list[dict[str, Any]]:
        """The samples, one for each position of the slider: step, a line about it, prompt, and pieces of text, each
        with 0, or alternating 1 and 2 if it is copied."""
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
        """Whether some sample was not searched for copied spans."""
        return any(copy["share"] is None for copy in self.copies)

    @property
    def corpus(self) -> dict[str, Any]:
        """Facts about the text from the run's record, and the sizes of its two parts."""
        corpus = self._started.get("corpus", {})
        return {"training_tokens": 0, "validation_tokens": 0} | self.record["corpus"] | corpus

    @property
    def ladder(self) -> list[tuple[str, float]]:
        """The n-gram baselines and this model, from the highest loss to the lowest. Empty without baselines."""
        rows = baselines(self.history.milestones)
        if rows and self.best:
            rows.append(("this model", self.best["validation_loss"]))
        return sorted(rows, key=lambda row: -row[1])

    @property
    def inspect_command(self) -> str:
        """The command for a check-up of the same tokens."""
        return self.history.inspect_command

    @property
    def report_command(self) -> str:
        """The command that writes this report again, with a search for copied text."""
        return command("report", self.reference)

    @property
    def plan(self) -> list[tuple[str, str, str]]:
        """What was planned, and the result. Empty without a plan."""
        plan, best, result = self._planned, self.best, self.result
        if plan is None:
            return []
        loss = "–" if plan["loss"] is None else f"{plan['loss']:.2f} ({plan['low']:.2f} to {plan['high']:.2f})"
        rows = [
            ("time", duration(60 * plan["minutes"]), duration(self.elapsed)),
            ("steps", f"{plan['steps']:,}", f"{self.last_step:,}"),
            ("epochs", f"{plan['epochs']:.1f}", f"{self.history.epochs(self.last_step):.1f}"),
            ("validation loss", loss, f"{best['validation_loss']:.2f}" if best else "–"),
        ]
        if plan.get("generations", 1) > 1:
            rows.append(("generations", f"{plan['generations']}", f"{len(self.generations) + 1}"))
        memory = f"{result['peak_memory'] / 1e9:.1f} GB" if result else "–"
        return [*rows, ("memory", f"{plan['memory'] / 1e9:.1f} GB", memory)]

    @property
    def forecast(self) -> str:
        """Whether the loss of a finished run is in the forecast range. Empty if there was no forecast."""
        plan, best = self._planned, self.best
        if plan is None or plan["loss"] is None or best is None or self.result is None:
            return ""
        loss = best["validation_loss"]
        where = "within" if plan["low"] <= loss <= plan["high"] else "below" if loss < plan["low"] else "above"
        return f"The loss is {where} the forecast range."

    @property
    def machine(self) -> list[tuple[str, str]]:
        """Hardware, peak memory and versions."""
        facts = [(name, str(value)) for name, value in self.record["machine"].items() if name != "reasons"]
        peak = [("peak memory", f"{self.result['peak_memory'] / 1e9:.1f} GB")] if self.result else []
        return [*facts, *peak, *self.record["versions"].items()]

    @property
    def settings(self) -> list[tuple[str, list[tuple[str, str, bool]]]]:
        """By group: flag, value, and whether the plan set it, not the user."""
        asked = self.record.get("requested", self.record["settings"])
        return [
            (group, [(flag(k), _shown(v), asked.get(group, {}).get(k) != v) for k, v in values.items()])
            for group in GROUPS
            if (values := self.record["settings"][group])
        ]


def _of(lines: Lines, kind: str) -> list[Mapping[str, Any]]:
    return [line for line in lines if line["event"] == kind]


def _selected(samples: Lines) -> Lines:
    """Evenly spread samples with the first and the last, as many as a page can hold."""
    longest = max((len(sample["text"]) for sample in samples), default=0)
    n = min(len(samples), _SAMPLES, max(2, _SAMPLE_CHARACTERS // max(longest, 1)))
    return [samples[i] for i in np.linspace(0, len(samples) - 1, n).round().astype(int)] if n else []


def _copied(sample: Mapping[str, Any], training_text: TrainingText | None) -> dict[str, Any]:
    """Share, longest span and all spans that a sample copied: as logged, or else found in the training text."""
    share, longest, spans = (sample.get(key) for key in ("copied_share", "longest_copy", "copied_spans"))
    if spans is None and training_text is not None:
        found = training_text.report(sample["text"])
        share, longest, spans = found.share, found.longest, [(span.start, span.stop) for span in found.spans]
    return {"step": sample["step"], "share": share, "longest": longest, "spans": spans or []}


def _shown(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "–"}[value]
    return f"{value:,}" if isinstance(value, int) else repr(value) if isinstance(value, str) else f"{value:g}"
