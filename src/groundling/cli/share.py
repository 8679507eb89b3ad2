"""The command that makes a web page of a run: share."""

from __future__ import annotations

import os
from pathlib import Path

from groundling.cli.app import Json, Out, RunReference, app, note, print_json


@app.command(sort_key=8)
def share(run: RunReference, /, *, to: Path | None = None, out: Out = None, json: Json = False) -> None:
    """Write a run as one HTML page that generates text in a browser, without a server or a network.

    The page holds the weights in 8 bits, and is compared with the model before it is written. Send it to anyone, or put
    it on any website.

    Args:
        to: The HTML file to write. Default: exports/ and the run's name in the run's folder.
    """
    from groundling.run.store import load

    path = load(run, out=out).share(to, notice=note)
    size = path.stat().st_size
    if json:
        return print_json({"file": str(path), "bytes": size})
    print(f"Saved to {os.path.relpath(path)} ({size:,} bytes). Open it in a browser.")
    return None
