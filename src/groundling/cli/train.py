"""Commands that train a model: train, resume."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from groundling import config as cfg
from groundling.cli.app import Json, Out, RunReference, Text, app, print_json
from groundling.cli.flags import given, with_settings
from groundling.training.signals import ended_by_signals

Track = Annotated[
    list[Literal["tensorboard", "wandb", "trackio"]] | None,
    Parameter(
        negative="", show_default=False,
        help="Also log to this tracker, an extra: pip install \"groundling[wandb]\". Repeat the flag for several.",
    ),
]  # fmt: skip

_PRESETS = "; ".join(f"{name}: {preset.description}" for name, preset in cfg.PRESETS.items())


@app.command(sort_key=0)
@with_settings
def train(
    corpus: Annotated[str | None, Text] = None,
    /,
    *,
    preset: Annotated[
        Literal[tuple(cfg.PRESETS)] | None,  # type: ignore[valid-type]
        Parameter(help=f"Named settings to start from. Default: {cfg.DEFAULT_PRESET}. {_PRESETS}."),
    ] = None,
    name: Annotated[str | None, Parameter(show_default=False)] = None,
    out: Out = None,
    track: Track = None,
    json: Json = False,
    **settings: Any,
) -> int:
    """Train a model on your text. --minutes N picks model size, batch and schedule to fit (default: 5). --steps or
    --preset set them yourself.

    Repeat the same command to resume a run that was stopped.

    Parameters
    ----------
    corpus
        A text file (.gz too), a folder of them, - for standard input, shakespeare (default), or python-docs.
    name
        The run's name. Default: made from the corpus.
    """
    chosen = given(settings)

    def start(tell: Callable[[Any], None], age: float) -> Any:
        from groundling.run.train import train

        return train(corpus, preset=preset, name=name, out=out, track=track, on_event=tell, elapsed=age, **chosen)

    return _train(json, start)


@app.command(sort_key=1)
def resume(
    run: RunReference,
    /,
    *,
    steps: Annotated[int | None, Parameter(help="New total number of steps.", show_default=False)] = None,
    minutes: Annotated[float | None, Parameter(help="New total time in minutes.", show_default=False)] = None,
    accept_changed_text: Annotated[
        bool, Parameter(negative="", help="Continue even though the training text changed. The run records it.")
    ] = False,
    out: Out = None,
    track: Track = None,
    json: Json = False,
) -> int:
    """Resume a run from its newest checkpoint, bit for bit as if it had never stopped."""

    def start(tell: Callable[[Any], None], age: float) -> Any:
        from groundling.run.train import resume

        return resume(
            run, steps=steps, minutes=minutes, accept_changed_text=accept_changed_text, out=out, track=track,
            on_event=tell, elapsed=age,
        )  # fmt: skip

    return _train(json, start)


def _train(json: bool, start: Callable[[Callable[[Any], None], float], Any]) -> int:
    with ended_by_signals():
        from groundling.machine import process_age
        from groundling.reporting.console import Console
        from groundling.training.events import Event, Finished, Paused

        ending: list[Event] = []
        with Console(sys.stderr if json else None) as console:

            def tell(event: Event) -> None:
                console(event)
                if isinstance(event, Finished | Paused):
                    ending.append(event)

            run = start(tell, process_age())
    if json:
        print_json(ending[-1].to_dict() | {"folder": str(run.folder)})
    return 0 if run.stopped_by is None else 128 + run.stopped_by
