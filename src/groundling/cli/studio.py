"""The verb studio."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from groundling.cli.app import Out, app


@app.command(sort_key=4)
def studio(
    *,
    host: str = "127.0.0.1",
    port: int = 8001,
    open: Annotated[bool, Parameter(negative="")] = False,
    out: Out = None,
) -> None:
    """Show the runs on a page in the browser: start them, watch them, let them write, and look inside. Ctrl-C ends it;
    runs that are training go on.

    Parameters
    ----------
    host
        Where to listen: this machine alone.
    port
        0 takes a free one.
    open
        Open a browser there.
    """
    try:
        from groundling.web.studio.app import serve_studio
    except ModuleNotFoundError as error:
        if error.name and error.name.startswith("groundling"):
            raise
        raise ValueError(f'The studio needs {error.name}: pip install "groundling[studio]".') from None

    serve_studio(out=out, host=host, port=port, open=open)
