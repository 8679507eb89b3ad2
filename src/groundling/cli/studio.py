"""The command `studio`."""

from __future__ import annotations

from groundling.cli.app import Out, app


@app.command(sort_key=4)
def studio(*, host: str = "127.0.0.1", port: int = 8001, open: bool = False, out: Out = None) -> None:
    """Start the studio: web pages to start and watch runs, generate text, and look inside models.

    Ctrl-C stops it. Runs that are training continue.

    Args:
        host: Address to listen on: a loopback address.
        port: 0 picks a free one.
        open: Open a browser, too.
    """
    try:
        from groundling.web.studio.app import studio as start
    except ModuleNotFoundError as error:
        if error.name and error.name.startswith("groundling"):
            raise
        raise ValueError(f'The studio needs {error.name}: pip install "groundling[studio]".') from None

    start(out=out, host=host, port=port, open=open)
