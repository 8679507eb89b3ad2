"""The command demo: the path of post-training, shown on this machine."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from groundling.cli.app import Json, app, note, print_json

Which = Annotated[Literal["reasoning"], Parameter(name="RECIPE", help="reasoning: answers, rewards, and thinking.")]


@app.command(sort_key=7)
def demo(recipe: Which = "reasoning", /, *, out: Path = Path("demo"), json: Json = False) -> int:
    """Show the whole path on this machine: pretrain, sft, dpo, grpo, distill, and whether thinking helps. Each stage
    takes some minutes. Repeat the same command to continue one that was stopped.

    Args:
        out: The folder for all runs, data, the table and the picture.
    """
    from groundling.config import user_path
    from groundling.training.signals import ended_by_signals

    with ended_by_signals():
        from groundling.experiments.demo import RECIPES, Stopped
        from groundling.experiments.demo import demo as run_demo
        from groundling.experiments.demo_picture import draw
        from groundling.reporting.stages import Stages

        file = sys.stderr if json else sys.stdout
        out = user_path("--out", out)
        try:
            with Stages(file) as stages:
                rows = run_demo(out, RECIPES[recipe], stages, stages.say)
        except Stopped as stopped:
            note("Everything is saved. Repeat the same command to continue.")
            return 128 + int(stopped.args[0])
        picture = draw(rows, out / "demo.png")
    if json:
        print_json(rows)
    else:
        print(f"\nThe table: {out / 'demo.json'}\nThe picture: {picture}\nThe runs: {out / 'runs'}")
    return 0
