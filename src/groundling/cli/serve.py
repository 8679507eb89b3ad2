"""The command `serve`."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from groundling.cli.app import Out, Precision, Unknown, app


@app.command(sort_key=4)
def serve(
    *runs: Annotated[str, Parameter(name="RUN", help="Names of runs, or paths of runs or checkpoints.")],
    host: str = "127.0.0.1",
    port: int = 8000,
    api_key: str | None = None,
    allow_host: Annotated[tuple[str, ...], Parameter(show_default=False)] = (),
    slots: int | None = None,
    precision: Precision = "float32",
    unknown: Unknown = "error",
    studio: bool = False,
    out: Out = None,
) -> None:
    """Serve one or more models with an OpenAI-compatible API.

    Args:
        host: Address to listen on. An address that other machines can reach needs --api-key.
        port: 0 picks a free one.
        api_key: Key that clients must send. Default: $GROUNDLING_API_KEY, which other users of the machine cannot see.
        allow_host: Another host that clients may use, such as a container's name, or *.my.example. Repeat it for more,
            or give * for any. Needs a key.
        slots: How many texts each model generates at once. Default: as many as fit into memory, up to 64.
        studio: Serve the studio's pages at /studio, too. Needs a loopback host and no key.
    """
    try:
        from groundling.web.server import serve
    except ModuleNotFoundError as error:
        raise ValueError(f'Serving needs {error.name}: pip install "groundling[serve]".') from None

    serve(
        *runs, host=host, port=port, api_key=api_key, allow_host=allow_host, slots=slots, precision=precision,
        unknown=unknown, studio=studio, out=out,
    )  # fmt: skip
