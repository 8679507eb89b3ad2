"""The command `groundling` (and `python -m groundling`): runs a command and turns errors into one-line messages."""

from __future__ import annotations

import os
import sys
from typing import NoReturn

from groundling.escape import printable
from groundling.training.signals import ended_by_signals


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run a command and exit. The status is 0, or an error is printed to standard error."""
    with ended_by_signals():
        from cyclopts import CycloptsError

        from groundling.cli import app
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in arguments
    if debug:
        arguments.remove("--debug")
    for stream in (sys.stdout, sys.stderr):
        # Otherwise a pipe on Windows uses the legacy code page, which lacks most of Unicode.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(encoding="utf-8", errors="replace")
    try:
        status = app(arguments, exit_on_error=False, print_error=False, result_action="return_value")
        sys.stdout.flush()
    except BrokenPipeError:  # as in `groundling sample ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 0
    except KeyboardInterrupt:
        status = 130
    except CycloptsError as error:
        status = _fail(str(error), 2)
    except Exception as error:
        if debug:
            raise
        from groundling.training.out_of_memory import ADVICE, OutOfMemoryError, is_out_of_memory

        if isinstance(error, ValueError | OSError | FloatingPointError | OutOfMemoryError):
            message = _message(error)
        elif is_out_of_memory(error):
            message = f"Memory ran out. {ADVICE}"
        else:
            message = f"Unexpected {type(error).__name__}: {_message(error)} (--debug shows the traceback)"
        status = _fail(message, 1)
    sys.exit(status if isinstance(status, int) else 0)


def _message(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:  # from the system, not one of our messages
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    return str(error) or type(error).__name__


def _fail(message: str, status: int) -> int:
    print(f"groundling: {printable(' '.join(message.split()))}", file=sys.stderr)
    return status


if __name__ == "__main__":
    main()
