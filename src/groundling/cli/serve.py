"""The command `serve`."""

from __future__ import annotations

from typing import Annotated, Literal

from cyclopts import Parameter

from groundling.cli.app import Out, app


@app.command(sort_key=4)
def serve(
    *runs: Annotated[str, Parameter(name="RUN", help="Names of runs, or paths of runs or checkpoints.")],
    host: str = "127.0.0.1",
    port: int = 8000,
    api_key: Annotated[str | None, Parameter(show_default=False)] = None,
    slots: Annotated[int | None, Parameter(show_default=False)] = None,
    precision: Literal["float32", "bfloat16", "int8"] = "float32",
    unknown: Literal["error", "skip"] = "error",
    studio: Annotated[bool, Parameter(negative="")] = False,
    out: Out = None,
) -> None:
    """Serve one or more models with an OpenAI-compatible API.

    Parameters
    ----------
    host
        Address to listen on. An address that other machines can reach needs --api-key.
    port
        0 picks a free one.
    api_key
        Key that clients must send. Default: $GROUNDLING_API_KEY, which other users of the machine cannot see.
    slots
        How many texts each model generates at once. Default: as many as fit into memory, up to 64.
    precision
        Precision of the weights. Fewer bits are faster, but less exact.
    unknown
        What to do with characters of a prompt that the model has never seen: reject the prompt, or skip them.
    studio
        Serve the studio's pages at /studio, too. Needs a loopback host and no key.
    """
    try:
        from groundling.web.server import serve
    except ModuleNotFoundError as error:
        raise ValueError(f'Serving needs {error.name}: pip install "groundling[serve]".') from None

    serve(
        *runs, host=host, port=port, api_key=api_key, slots=slots, precision=precision, unknown=unknown, studio=studio,
        out=out,
    )  # fmt: skip
