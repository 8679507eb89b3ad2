"""Shows training to a person: a live line on a terminal, plain lines elsewhere."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import IO, Any

from rich.console import Console as RichConsole
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.table import Table
from rich.text import Text

from groundling.analysis.diagnosis import standing
from groundling.config.methods import METHODS
from groundling.escape import command, printable, say
from groundling.reporting.figures import best_of, brief, shown, step_figures, worded
from groundling.training import events

_SECONDS_BETWEEN_LINES = 5.0
_LINE = 100  # characters of a reply


class _Rich(RichConsole):
    def on_broken_pipe(self) -> None:
        raise  # rich itself would end the process


class Console:
    """Prints events to `file` (default: standard output). Use it as a context manager to clear the live line."""

    def __init__(self, file: IO[str] | None = None) -> None:
        # With COLUMNS=0, as some containers have it, rich itself would print nothing.
        width, height = shutil.get_terminal_size() if "COLUMNS" in os.environ else (None, None)
        self.out = _Rich(file=file, width=width, height=height, highlight=False, soft_wrap=True, emoji=False)
        self._live: Progress | None = None
        self._task = TaskID(0)
        self._validation = ""
        self._name = "pretraining"  # of the training task
        self._corpus = ""
        self._sample: events.Sample | None = None
        self._last_line = self._began = 0.0
        self._steps = ""
        self._milestones: list[float] = []
        self._standing = ""

    def __enter__(self) -> Console:
        return self

    def __exit__(self, *_: object) -> None:
        self._end_live()

    def __call__(self, event: events.Event) -> None:
        try:
            self._show(event)
        except OSError as error:  # the terminal was closed, or the reader of a pipe is gone
            self._drop(error)

    def _drop(self, error: OSError) -> None:
        """Show nothing more, so that training continues."""
        with suppress(OSError, AttributeError):
            if self.out.file.fileno() in (1, 2):  # what is in its buffer would fail again when Python exits
                os.dup2(os.open(os.devnull, os.O_WRONLY), self.out.file.fileno())
        self._live = None
        self.out = _Rich(quiet=True)
        say(f"note: The output cannot be written ({(error.strerror or str(error)).lower()}). Continuing without it.")

    def _show(self, event: events.Event) -> None:
        match event:
            case events.Preparing():
                self._preparing(event)
            case events.Notice():
                self.out.print(f"[yellow]note:[/] {escape(printable(event.sentence))}")
            case events.Planned():
                self._planned(event)
            case events.Started():
                self._started(event)
            case events.Checked():
                self._milestones = event.milestones
            case events.Step():
                self._step(event)
            case events.Skipped():
                self.out.print(f"[yellow]Skipped step {event.step:,}:[/] {escape(event.cause)}. Weights unchanged.")
            case events.RolledBack():
                where = f"checkpoint {event.to:,}" if event.to else "the start"
                rate = "half the" if event.rate_share == 0.5 else f"{event.rate_share:.3g} × the original"
                self.out.print(
                    f"[yellow]Rolled back from step {event.step:,} to {where}[/] ({escape(event.cause)}). "
                    f"Continuing at {rate} learning rate."
                )
            case events.OutOfMemory():
                self.out.print(
                    f"[yellow]Out of memory {event.doing}.[/] Continuing from step {event.step:,} with "
                    f"{event.accumulate:,} micro-batches of {event.batch_size:,} per step (evaluation: "
                    f"{event.evaluation_batch:,}). The text of each step is the same, but losses may differ in their "
                    "last digits."
                )
            case events.Evaluation():
                self._evaluation(event)
            case events.Generation():
                self.out.print(
                    f"[bold]step {event.step:,}  generation {event.generation} starts:[/] a new model, which learns "
                    "from the text and from the previous model"
                )
            case events.Sample():
                self._sample = event
                self.out.print(Text(_indent(event.prompt + event.text), style="dim"))
                if event.copied_share:
                    self.out.print(
                        f"    ({event.copied_share:.0%} copied from the training text, longest span "
                        f"{event.longest_copy} characters)"
                    )
            case events.Replies():
                self._replies(event)
            case events.Paused():
                self._end_live()
                self.out.print(f"Saved at step {event.step:,}. To continue:  ", end="")
                self.out.print(Text(command("resume", event.run), style="bold"))
            case events.Finished():
                self._end_live()
                self._finished(event)

    def _preparing(self, event: events.Preparing) -> None:
        """Progress, speed and time left, for a text that takes longer than a few seconds."""
        now = time.perf_counter()
        if event.done >= event.total:
            self._began = 0.0
            return
        if event.done <= 0 or not self._began:
            self._began = self._last_line = now
        if now - self._last_line >= _SECONDS_BETWEEN_LINES / 2:
            self._last_line = now
            rate = event.done / max(now - self._began, 1e-9)
            self.out.print(
                f"{event.doing} the text: {event.done / 1e6:,.0f} of {event.total / 1e6:,.0f} MB, "
                f"{rate / 1e6:,.0f} MB/s, {duration((event.total - event.done) / max(rate, 1))} left"
            )

    def _planned(self, event: events.Planned) -> None:
        model, expected = event.model, ""
        if event.loss is not None:
            expected = f"; expected validation loss {event.loss:.2f} ({event.low:.2f} to {event.high:.2f})"
        self.out.print(
            f"[bold]plan    {event.minutes:g} minutes, until {event.ends[11:19]}[/]: "
            f"{event.parameters / 1e6:.1f}M parameters ({model['n_layer']} layers × {model['n_embd']}), "
            f"dropout {model['dropout']:g}, batch of {event.batch_size} × {model['block_size']} tokens"
            + (f", {event.generations} generations" if event.generations > 1 else "")
        )
        self.out.print(
            f"        about {event.steps:,} steps of {event.seconds_per_step:.2g} s, {event.epochs:.1f} epochs, "
            f"{event.memory / 1e9:.1f} GB of memory{expected}"
        )

    def _started(self, event: events.Started) -> None:
        total = sum(count for _, count in event.parameters)
        table = Table(title=f"{total:,} parameters", title_justify="left", box=None, pad_edge=False, show_header=False)
        for part, count in event.parameters:
            table.add_row(part, f"{count:,}")
        self.out.print(table)
        corpus, machine = event.corpus, event.machine
        self._name, self._corpus = event.task, corpus["name"]
        if not corpus["training_tokens"]:  # a task makes its own prompts
            self.out.print(f"task    {escape(printable(corpus['name']))}, vocabulary of {corpus['vocab_size']:,}")
        else:
            self.out.print(
                f"corpus  {escape(printable(corpus['name']))}: {corpus['characters']:,} characters, vocabulary of "
                f"{corpus['vocab_size']:,}; {corpus['training_tokens']:,} training tokens, "
                f"{corpus['validation_tokens']:,} validation tokens"
            )
        for part in corpus.get("parts", []):
            self.out.print(f"        {escape(printable(part['name']))}: {mixed(part)}")
        if corpus.get("parts"):
            self.out.print("        validation loss: the mean of the texts' own, weighted by their shares at the end")
        self.out.print(
            f"machine {machine['device']}, {machine['dtype']}, {machine['threads']} threads"
            + (f" ({'; '.join(machine['reasons'])})" if machine["reasons"] else "")
        )
        self._steps, self._last_line = f"{'about ' if event.minutes else ''}{event.steps:,}", 0.0
        action = f"resumes at step {event.step:,} of" if event.step else "trains for"
        epochs = f", {event.epochs:.1f} epochs" if corpus["training_tokens"] else ""
        self.out.print(f"run     {escape(event.run)} {action} {self._steps} steps{epochs}\n")
        if self.out.is_terminal:
            self._live = Progress(
                BarColumn(bar_width=24), TextColumn("{task.description}"), console=self.out, transient=True
            )
            self._task = self._live.add_task("", total=None)
            self._live.start()

    def _step(self, event: events.Step) -> None:
        loss = "" if self._name == "grpo" else f"loss {event.loss:.3f}"  # not a measure of its progress
        known = "  ".join(filter(None, (loss, step_figures(self._name, event.figures))))
        line = (
            f"step {event.step:,}/{self._steps}  {known}{self._validation}  "
            f"lr {event.learning_rate:.1e}  {event.tokens_per_second:,.0f} tok/s  {duration(event.seconds_left)} left"
        )
        now = time.perf_counter()
        if self._live:
            total = event.elapsed + event.seconds_left
            self._live.update(self._task, description=line, completed=event.elapsed, total=total)
        elif now - self._last_line >= _SECONDS_BETWEEN_LINES:
            self._last_line = now
            self.out.print(line)

    def _evaluation(self, event: events.Evaluation) -> None:
        loss = event.metric.endswith("loss")
        score = f"{event.validation_loss:.3f}" if loss else brief(event.metric, event.validation_loss)
        self._validation = f"  val {'' if loss else event.metric + ' '}{score}"
        bits = "" if event.bits_per_byte is None else f"  {event.bits_per_byte:.3f} bits/byte"
        training = "" if event.training_loss is None or not loss else f"  training loss {event.training_loss:.4f}"
        others = "".join(f"  {worded(name)} {shown(name, value)}" for name, value in event.figures.items())
        self.out.print(
            f"[bold]step {event.step:,}  {escape(event.metric)} {shown(event.metric, event.validation_loss)}[/]"
            f"{training}{bits}{escape(others)}  {duration(event.elapsed)}{'  (best so far)' if event.best else ''}"
        )
        if event.metric != events.VALIDATION_LOSS:
            return
        words = standing(event.validation_loss, self._milestones)
        if words and words != self._standing:
            self.out.print(f"    {words}")
            self._standing = words

    def _replies(self, event: events.Replies) -> None:
        """The best and the worst reply of a group, if possible of one in which they differ."""
        groups = [group for group in event.groups if group.rewards and len(group.replies) == len(group.rewards)]
        if not groups:
            return
        group = max(groups, key=lambda group: max(group.rewards) > min(group.rewards))
        mean = sum(group.rewards) / len(group.rewards)
        ranked = sorted(zip(group.rewards, group.replies, strict=True), key=lambda each: each[0])
        rows = [ranked[-1], ranked[0]] if ranked[-1][0] > ranked[0][0] else ranked[:1]
        self.out.print(
            Text(f"    {_line(group.prompt)}   ({len(ranked)} replies, mean reward {mean:.3g})", style="dim")
        )
        for reward, reply in rows:
            self.out.print(Text(f"      reward {reward:<6.3g} {_line(reply)}", style="dim"))

    def _finished(self, event: events.Finished) -> None:
        self.out.print(
            f"\nDone: {event.step:,} steps in {duration(event.elapsed)}, peak memory {event.peak_memory / 1e9:.1f} GB. "
            f"[bold]{best_of(event.metric, event.best_validation_loss)}[/] at step {event.best_step:,}."
        )
        self.out.print(Text(event.verdict))
        if event.forecast:
            self.out.print(Text(event.forecast))
        if self._sample:
            self.out.print("\nSample:\n")
            self.out.print(Text(_indent(self._sample.prompt + self._sample.text)))
        if event.report:
            self.out.print(Text(f"\nReport: {event.report}"))
        self.out.print("\nTry next:")
        for words in self._next(event):
            self.out.print(Text(f"  {command(*words)}", style="bold"))

    def _next(self, event: events.Finished) -> list[tuple[object, ...]]:
        """Commands that suit the finished run."""
        resume = ("resume", event.run, "--steps", 2 * event.step)
        if self._name not in METHODS:
            prompt = ("--prompt", event.prompt.replace("\\", "\\\\")) if event.prompt else ()
            return [("sample", event.run, *prompt), ("eval", event.run), resume]
        if self._name == "reward":
            return [("explain", event.run), ("grpo", "--help"), resume]
        if event.metric == "accuracy":  # of a task with verifiable rewards
            return [("chat", event.run), ("eval", event.run, "--task", self._corpus), resume]
        return [("chat", event.run), *([("tasks",), ("grpo", "--help")] if self._name == "sft" else []), resume]

    def _end_live(self) -> None:
        live, self._live = self._live, None
        if live:
            with suppress(OSError):  # the terminal is gone
                live.stop()


def mixed(part: Mapping[str, Any]) -> str:
    """What a run reads of one of its texts, such as `70% of the windows, 12,345 training tokens, 2.1 epochs`."""
    start, end = f"{100 * part['start']:.3g}%", f"{100 * part['end']:.3g}%"
    share = start if start == end else f"{start} to {end}"
    return f"{share} of the windows, {part['training_tokens']:,} training tokens, {part['epochs']:.1f} epochs"


def duration(seconds: float) -> str:
    """`42 s`, `3 min 20 s`, `2 h 05 min`."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60:02d} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60:02d} min"


def _indent(text: str) -> str:
    return "    " + printable(text).strip("\n").replace("\n", "\n    ")


def _line(text: str) -> str:
    """On one line, and not too long."""
    text = printable(" ".join(text.split()))
    return text if len(text) <= _LINE else text[: _LINE - 1] + "…"
