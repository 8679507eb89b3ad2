"""The verb serve."""

from __future__ import annotations

from typing import Annotated, Literal

from cyclopts import Parameter

from groundling.cli.app import Out, app


@app.command(sort_key=4)
def serve(
    *runs: Annotated[str, Parameter(name="RUN", help="Runs by name, or paths to runs or checkpoints.")],
    host: str = "127.0.0.1",
    port: int = 8000,
    api_key: Annotated[str | None, Parameter(show_default=False)] = None,
    slots: Annotated[int | None, Parameter(show_default=False)] = None,
    precision: Literal["float32", "bfloat16", "int8"] = "float32",
    unknown: Literal["error", "skip"] = "error",
    studio: Annotated[bool, Parameter(negative="")] = False,
    out: Out = None,
) -> None:
    """Answer programs that speak OpenAI's API, with one or several models.

    Parameters
    ----------
    host
        Where to listen. Anything but this machine itself needs a key.
    port
        0 takes a free one.
    api_key
        What clients must send; GROUNDLING_API_KEY if not given, which other users of the machine cannot read.
    slots
        How many texts a model writes at a time; as many as memory has room for, up to 64, if not given.
    precision
        Of the weights: fewer bits are read faster, and round the model.
    unknown
        What to do with characters of a prompt that a model never saw.
    studio
        Show the studio's pages too, below /studio; on this machine alone, and without a key.
    """
    try:
        from groundling.web.server import serve
    except ModuleNotFoundError as error:
        raise ValueError(f'Serving needs {error.name}: pip install "groundling[serve]".') from None

    serve(
        *runs, host=host, port=port, api_key=api_key, slots=slots, precision=precision, unknown=unknown, studio=studio,
        out=out,
    )  # fmt: skip
