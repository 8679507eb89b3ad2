"""The command `groundling` (and `python -m groundling`): runs a command and turns errors into one-line messages."""

from __future__ import annotations

import os
import sys

if __name__ == "__main__" and not sys.flags.safe_path and sys.path[0] != os.path.dirname(os.path.dirname(__file__)):
    del sys.path[0]  # `python -m` puts the working folder there, and in it may be a torch.py or random.py of yours

import re
import time
from typing import TYPE_CHECKING, NoReturn

from groundling.escape import printable
from groundling.parallel.exit_codes import LOST_ANOTHER
from groundling.training.signals import ended_by_signals

if TYPE_CHECKING:
    from cyclopts import CycloptsError


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run a command and exit. The status is 0, or an error is printed to standard error."""
    _mend_environment()
    with ended_by_signals():
        from cyclopts import CycloptsError

        from groundling.cli import app
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    several = os.environ.get("WORLD_SIZE", "1") != "1" and "TORCHELASTIC_RUN_ID" in os.environ  # by torchrun
    if several and arguments[:1] not in ([], ["train"], ["resume"], ["sft"]):
        sys.exit(_fail(f"{arguments[0]} runs in one process. torchrun can start train, resume and sft.", 2))
    debug = "--debug" in arguments
    if debug:
        arguments.remove("--debug")
    try:
        status = app(arguments, exit_on_error=False, print_error=False, result_action="return_value")
        sys.stdout.flush()
    except BrokenPipeError:  # as in `groundling sample ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 0
    except KeyboardInterrupt:
        status = 130
    except CycloptsError as error:
        status = _fail(f"{getattr(error, 'exception_message', '') or error}{_hint(error)}", 2)
    except Exception as error:
        if debug:
            raise
        status = _failed(error)
        if several:
            os._exit(status)  # at once: the other processes notice, and end too
    sys.exit(status if isinstance(status, int) else 0)


def _failed(error: Exception) -> int:
    """Print what went wrong. Returns the exit code."""
    processes = sys.modules.get("groundling.parallel.processes")
    if processes is not None and processes.lost_another(error):
        if processes.is_first_of_machine():  # on a machine that sees no more of it
            _fail(
                "The connection to another process is lost. Nothing that was saved is lost: run the same command on "
                "all machines again to continue.",
                LOST_ANOTHER,
            )
        time.sleep(1)  # the other one says why it is gone, or whoever started it does
        return LOST_ANOTHER
    from groundling.training.out_of_memory import ADVICE, OutOfMemoryError, is_out_of_memory

    if isinstance(error, ValueError | OSError | FloatingPointError | OutOfMemoryError):
        message = _message(error)
    elif is_out_of_memory(error):
        message = f"Memory ran out. {ADVICE}"
    else:
        message = f"Unexpected {type(error).__name__}: {_message(error)} (--debug shows the traceback)"
    return _fail(message, getattr(error, "exit_code", 1))


def _mend_environment() -> None:
    """Standard streams for all, in UTF-8, and a terminal that is wider than nothing."""
    for name, stream, mode in (("stdin", sys.stdin, "r"), ("stdout", sys.stdout, "w"), ("stderr", sys.stderr, "w")):
        if stream is None:  # as in a service, under pythonw, or after `>&-`; the next file would get its number
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115
        elif hasattr(stream, "reconfigure"):
            # Otherwise a pipe on Windows uses the legacy code page, which lacks most of Unicode.
            stream.reconfigure(encoding="utf-8", errors="replace")
    for name in ("COLUMNS", "LINES"):  # a container may set them to 0
        if not re.fullmatch("[1-9][0-9]{0,5}", os.environ.get(name, "")):
            os.environ.pop(name, None)


def _hint(error: CycloptsError) -> str:
    """What to type instead, where that can be seen."""
    from cyclopts import UnusedCliTokensError

    from groundling.config.paths import DASHES, QUOTES

    unused = isinstance(error, UnusedCliTokensError)
    for word in error.unused_tokens or [] if unused else [getattr(getattr(error, "token", None), "keyword", "") or ""]:
        if word.startswith(tuple(DASHES)):
            return f" {word!r} begins with a dash that is not a hyphen. Options begin with two hyphens."
        if unused and not {*QUOTES}.isdisjoint({word[:1], word[-1:]}):
            return f' {word!r} has a quotation mark that your shell does not know. Use ".'
        if re.match(r"-\w\w", word):
            return f" Options begin with two hyphens: -{word}."
    return " A text or a path with spaces needs quotes around it." if unused else ""


def _message(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:  # from the system, not one of our messages
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    return str(error) or type(error).__name__


def _fail(message: str, status: int) -> int:
    line = re.sub(r"\s*\n\s*", " ", message.strip())  # other spaces stay: they may be in a path
    rank = os.environ.get("RANK") if os.environ.get("WORLD_SIZE", "1") != "1" else None
    processes = sys.modules.get("groundling.parallel.processes")
    together = processes is not None and processes.together()
    if rank in (None, "0") or together:  # before they train together, all would say the same
        print(f"groundling{f' (rank {rank})' if rank else ''}: {printable(line)}", file=sys.stderr, flush=True)
    return status


if __name__ == "__main__":
    main()
