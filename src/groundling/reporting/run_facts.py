"""The figures and sentences of a run's HTML report, from the files of the run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cached_property
from typing import Any

import numpy as np

from groundling.analysis.diagnosis import diagnose, outcome, standing
from groundling.analysis.findings import Finding
from groundling.analysis.history import History
from groundling.analysis.memorization import TrainingText, parts
from groundling.config import GROUPS, Config, flag
from groundling.escape import command, printable
from groundling.evaluation.positions import PositionLoss
from groundling.reporting.charts import drawn
from groundling.reporting.console import duration, mixed
from groundling.reporting.figures import brief, shown
from groundling.reporting.lineage import Origin
from groundling.reporting.plot import Lines, baselines
from groundling.reporting.rollouts import rollout_slides
from groundling.reporting.run_charts import (
    copy_charts,
    figure_charts,
    position_chart,
    rate_chart,
    score_charts,
    speed_chart,
)
from groundling.training.events import VALIDATION_LOSS

_SAMPLES = 100  # positions of the slider
_SAMPLE_CHARACTERS = 400_000  # of all samples on the page together


class Facts:
    """Everything that the report of a run shows.

    `record`, `lines`, `samples` and `result` are the run's config.json, metrics.jsonl, samples.jsonl and result.json
    (None if it is not finished). `training_text` is searched for samples that do not say what they copied. `replies`
    are the groups of replies in samples.jsonl. `positions` are losses by position, and the step at which they were
    measured. Raises ValueError if no step was logged.
    """

    def __init__(
        self, reference: str, record: Mapping[str, Any], config: Config, lines: Lines, samples: Lines,
        result: Mapping[str, Any] | None, training_text: TrainingText | None = None, replies: Lines = (),
        positions: tuple[int, Sequence[PositionLoss]] = (0, ()),
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
        self._replies, self._positions = replies, positions
        self.origin = Origin(record, config.task)
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
            metric, unit = best.get("metric", VALIDATION_LOSS), "" if "metric" in best else ", nats per token"
            figures.append((shown(metric, best["validation_loss"]), f"best {metric}{unit}"))
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
        if self.best is None or "metric" in self.best:
            return ""
        return standing(self.best["validation_loss"], self.history.milestones)

    @cached_property
    def findings(self) -> list[Finding]:
        return diagnose(self.history)

    @property
    def outcome(self) -> str:
        """What the run reached, and whether more steps would help."""
        return outcome(self.history)

    @property
    def is_tuned(self) -> bool:
        """Whether it is of a post-training task."""
        return self.config.method is not None

    @property
    def charts(self) -> dict[str, dict[str, Any]]:
        """The charts that have something to draw, by name."""
        best = (self.best["step"], self.best["validation_loss"]) if self.best else None
        is_muon = self.config.training.optimizer == "muon"
        charts = [
            *score_charts(self.whole, best, self.generations), *figure_charts(self.whole),
            rate_chart(self.whole, is_muon), speed_chart(self.steps), *copy_charts(self.copies),
        ]  # fmt: skip
        drawings = {chart.key: shown for chart in charts if (shown := drawn(chart, self.last_step))}
        positions = position_chart(*self._positions)
        return drawings | ({"positions": positions} if positions else {})

    @property
    def slides(self) -> list[dict[str, Any]]:
        """The samples, one for each position of the slider: step, a line about it, prompt, and pieces of text, each
        with 0, or alternating 1 and 2 if it is copied."""
        return [self._slide(sample, copy) for sample, copy in zip(self.samples, self.copies, strict=True)]

    @property
    def rollouts(self) -> list[dict[str, Any]]:
        """Groups of replies with their rewards, one list for each position of a slider."""
        return rollout_slides(self._replies)

    def _slide(self, sample: Mapping[str, Any], copy: Mapping[str, Any]) -> dict[str, Any]:
        step = sample["step"]
        scored = next((line for line in reversed(self.evaluations) if line["step"] <= step), None)
        said = f"step {step:,}"
        if scored and scored["step"] == step:
            metric, score = scored.get("metric", VALIDATION_LOSS), scored["validation_loss"]
            value = f"{score:.3f}" if metric.endswith("loss") else brief(metric, score)
            said += f" · {duration(scored['elapsed'])} · {metric} {value}"
        if copy["share"] is not None:
            said += f" · {100 * copy['share']:.0f} % copied, longest span {copy['longest']:,} characters"
        pieces, number = [], 0
        for piece, span in parts(sample["text"], [slice(*span) for span in copy["spans"]]):
            number += span is not None
            pieces.append([printable(piece), 1 + number % 2 if span else 0])
        prompt = sample["prompt"].strip("\n") + "\n" if self.is_tuned else sample["prompt"].lstrip("\n")
        return {"step": step, "said": said, "prompt": printable(prompt), "pieces": pieces}

    @property
    def unsearched(self) -> bool:
        """Whether some sample of a text was not searched for copied spans."""
        return not self.is_tuned and any(copy["share"] is None for copy in self.copies)

    @property
    def unit(self) -> str:
        """What the data consist of."""
        return {"pretraining": "document", "dpo": "pair", "reward": "pair", "grpo": "prompt"}.get(
            self.config.task, "document" if self.history.milestones else "conversation"
        )

    @property
    def corpus(self) -> dict[str, Any]:
        """Facts about the text from the run's record, and the sizes of its two parts."""
        corpus = self._started.get("corpus", {})
        return {"training_tokens": 0, "validation_tokens": 0, "parts": []} | self.record["corpus"] | corpus

    @property
    def texts(self) -> list[tuple[str, str]]:
        """The texts of a mix, and what is read of each."""
        return [(printable(part["name"]), mixed(part)) for part in self.corpus["parts"]]

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
            (group, [(flag(k), _shown(v), (asked.get(group) or {}).get(k) != v) for k, v in values.items()])
            for group in (*GROUPS, "method")
            if (values := self.record["settings"].get(group))
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
