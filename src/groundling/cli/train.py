"""Commands that train a model: train, resume."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from groundling import config as cfg
from groundling.cli.app import Corpus, Json, Out, RunReference, app, print_json
from groundling.cli.flags import with_settings
from groundling.training.signals import ended_by_signals

Track = Annotated[
    list[Literal["tensorboard", "wandb", "trackio"]] | None,
    Parameter(
        negative="",
        help="Also log to this tracker, an extra: pip install \"groundling[wandb]\". Repeat the flag for several.",
    ),
]  # fmt: skip

_PRESETS = "; ".join(f"{name}: {preset.description}" for name, preset in cfg.PRESETS.items())


@app.command(sort_key=0)
@with_settings(*cfg.GROUPS)
def train(
    *corpus: Corpus,
    mix: Annotated[
        tuple[str, ...],
        Parameter(
            consume_multiple=True,
            negative="",
            help="Instead of CORPUS: several texts with weights, such as a.txt=0.7 b/=0.3. A weight that changes over "
            "the run is two numbers: a.txt=0.9:0.1.",
        ),
    ] = (),
    preset: Annotated[
        Literal[tuple(cfg.PRESETS)] | None,  # type: ignore[valid-type]
        Parameter(help=f"Named settings to start from. Default: {cfg.DEFAULT_PRESET}. {_PRESETS}."),
    ] = None,
    name: str | None = None,
    out: Out = None,
    track: Track = None,
    json: Json = False,
    **settings: Any,
) -> int:
    """Train a model on your text (default: shakespeare). --minutes N picks model size, batch and schedule to fit
    (default: 5). --steps or --preset set them yourself.

    Repeat the same command to resume a run that was stopped.

    Args:
        name: The run's name. Default: made from the corpus.
    """
    options = {"out": out, "track": track, **settings}
    return train_and_show("train", json, corpus or None, mix=mix or None, preset=preset, name=name, **options)


@app.command(sort_key=1)
@with_settings("processes")
def resume(
    run: RunReference,
    /,
    *,
    steps: int | None = None,
    minutes: float | None = None,
    corpus: Annotated[
        tuple[str, ...],
        Parameter(
            consume_multiple=True, negative="", help="Where the text is now, if it was moved. The run records it."
        ),
    ] = (),
    accept_changed_text: bool = False,
    out: Out = None,
    track: Track = None,
    json: Json = False,
    **settings: Any,
) -> int:
    """Resume a run from its newest checkpoint, bit for bit as if it had never stopped.

    Args:
        steps: New total number of steps.
        minutes: New total time in minutes.
        accept_changed_text: Continue even though the training text changed. The run records it.
    """
    changes = {"steps": steps, "minutes": minutes, "corpus": corpus or None, "accept_changed_text": accept_changed_text}
    changes |= settings
    return train_and_show("resume", json, run, out=out, track=track, **changes)


def train_and_show(command: str, json: bool, *arguments: Any, **options: Any) -> int:
    """Call the Python function of that name, and show its events. Of several processes, only rank 0 shows them."""
    if "WORLD_SIZE" not in os.environ and (n := _processes(command, arguments, options)) > 1:
        with ended_by_signals():
            from groundling.parallel.launch import launch
        return launch(n, sys.argv[1:])
    with ended_by_signals():
        import groundling
        from groundling.machine import process_age
        from groundling.reporting.console import Console
        from groundling.training.events import Event, Finished, Paused

        ending: list[Event] = []
        with Console(sys.stderr if json else None) if os.environ.get("RANK", "0") == "0" else nullcontext() as console:

            def tell(event: Event) -> None:
                if console is not None:
                    console(event)
                if isinstance(event, Finished | Paused):
                    ending.append(event)

            run = getattr(groundling, command)(*arguments, on_event=tell, elapsed=process_age(), **options)
    if json and ending:
        print_json(ending[-1].to_dict() | {"folder": str(run.folder)})
    return 0 if run.stopped_by is None else 128 + run.stopped_by


def _processes(command: str, arguments: Sequence[Any], options: Mapping[str, Any]) -> int:
    """How many processes a command is to start. A run resumes with as many as it had."""
    if command != "resume" or "processes" in options:
        asked = cfg.MachineSettings(
            processes=options.get("processes", 1)
        ).processes  # raises if it is out of its limits
        return asked if command in ("train", "resume", "sft") else 1  # the others refuse more
    from groundling.run.store import load

    try:
        return load(arguments[0], out=options["out"]).config.machine.processes
    except (ValueError, OSError):
        return 1  # which says what is wrong
