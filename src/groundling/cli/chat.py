"""The command chat: write with a model, turn by turn, in the terminal."""

from __future__ import annotations

import dataclasses
import sys
import warnings
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Literal

from groundling.cli.app import Out, RunReference, Text, app, note
from groundling.cli.flags import given, with_settings
from groundling.config import Sampling
from groundling.escape import printable

if TYPE_CHECKING:
    from groundling.run.run import Run

KNOBS: dict[str, Callable[[str], Any]] = {
    field.name: int if "int" in str(field.type) else float
    for field in dataclasses.fields(Sampling)
    if "help" in field.metadata
}
"""What can be set in a session, and how it is read from text."""

HELP = """\
Type some text and the model continues it. Enter alone lets it continue. Alt-Enter starts a new line.
Ctrl-C stops the answer. Ctrl-D or /quit ends the session.
  /reset        forget everything so far
  /again        replace the last answer with another one
  /help         show this help and the settings
Settings, with a value to change them or without one to show them:"""


@app.command(sort_key=3)
@partial(with_settings, groups=("sampling",))
def chat(
    run: RunReference,
    /,
    *,
    max_new_tokens: int = 300,
    stop: Annotated[tuple[str, ...], Text] = (),
    precision: Literal["float32", "bfloat16", "int8"] = "float32",
    unknown: Literal["error", "skip"] = "error",
    out: Out = None,
    **settings: Any,
) -> None:
    """Write with a model, turn by turn. /help lists what you can set along the way.

    Parameters
    ----------
    max_new_tokens
        How many tokens to generate in a turn.
    stop
        End a turn where this text appears. Repeat the flag for several.
    precision
        Weight precision. bfloat16 and int8 generate faster but are slightly less accurate.
    unknown
        What to do with characters that the model has never seen.
    """
    from groundling.run.store import load

    sampling = Sampling(**given(settings))
    loaded = load(run, out=out)
    options: dict[str, Any] = {"stop": stop, "precision": precision, "unknown": unknown}
    loaded.stream("", sampling, max_new_tokens, **options)  # refuses wrong options before the first turn
    loaded.variants.decoder(precision)
    session = Session(loaded, sampling, max_new_tokens, options)
    note(f"{loaded.name} is not a chat model: it continues your text instead of answering. /help shows more.")
    read = _reader()
    while (line := read()) is not None:
        if not session.take(line):
            return


class Session:
    """The text so far, and the settings of the next turn."""

    def __init__(self, run: Run, sampling: Sampling, max_new_tokens: int, options: dict[str, Any]) -> None:
        self._run, self._options = run, options
        self._sampling, self._max_new_tokens = sampling, max_new_tokens
        self._text = ""
        self._before = ""  # what the last answer continues
        self._turn = 0

    def take(self, line: str) -> bool:
        """Carry out a line. Returns False if it ends the session. A wrong line prints a note and changes nothing."""
        try:
            if not line.startswith("/"):
                self._continue(self._text + ("\n" if self._text and not self._text.endswith("\n") else "") + line)
                return True
            name, _, value = line[1:].strip().partition(" ")
            if name == "quit":
                return False
            self._command(name.replace("-", "_"), value.strip())
        except ValueError as error:
            note(str(error))
        return True

    def _continue(self, text: str) -> None:
        """Continue `text`, printing as it comes, until Ctrl-C."""
        assert self._sampling.seed is not None
        sampling = dataclasses.replace(self._sampling, seed=(self._sampling.seed + self._turn) % 2**63)
        written = ""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a session may outgrow the context
            pieces = self._run.stream(text, sampling, self._max_new_tokens, **self._options)
        # A terminal obeys control characters, and a stranger's model may generate any.
        shown = printable if sys.stdout.isatty() else str
        try:
            for piece in pieces:
                written += piece
                print(shown(piece), end="", flush=True)
        except KeyboardInterrupt:
            pass  # stops the answer, not the session
        print(flush=True)
        self._before, self._text = text, text + written
        self._turn += 1

    def _command(self, name: str, value: str) -> None:
        if name == "help":
            print(HELP)
            for knob in ("max_new_tokens", *KNOBS):
                print(f"  /{knob.replace('_', '-')} {self._setting(knob)}")
        elif name == "reset":
            self._text = self._before = ""
            self._turn = 0
        elif name == "again":
            self._continue(self._before)
        elif name not in KNOBS and name != "max_new_tokens":
            raise ValueError(f"There is no /{name.replace('_', '-')}. /help lists the commands.")
        elif not value:
            print(f"{name.replace('_', '-')} {self._setting(name)}")
        else:
            self._set(name, value)

    def _setting(self, knob: str) -> object:
        return self._max_new_tokens if knob == "max_new_tokens" else getattr(self._sampling, knob)

    def _set(self, knob: str, value: str) -> None:
        try:
            number = KNOBS.get(knob, int)(value)
        except ValueError:
            raise ValueError(f"/{knob.replace('_', '-')} takes a number, not {value!r}.") from None
        if knob == "max_new_tokens":
            if number < 1:
                raise ValueError(f"/max-new-tokens must be 1 or more, and it is {number}.")
            self._max_new_tokens = number
        else:
            self._sampling = dataclasses.replace(self._sampling, **{knob: number})
            if knob == "seed":
                self._turn = 0


def _reader() -> Callable[[], str | None]:
    """A function that reads the user's next line, or returns None at the end."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        lines = iter(sys.stdin)
        return lambda: line.rstrip("\r\n") if (line := next(lines, None)) is not None else None

    from prompt_toolkit import PromptSession
    from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

    keys = KeyBindings()

    @keys.add("escape", "enter")
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    session: PromptSession[str] = PromptSession("> ", key_bindings=keys, enable_open_in_editor=False)

    def read() -> str | None:
        while True:
            try:
                return session.prompt()
            except KeyboardInterrupt:
                continue  # drops the line, as in a shell
            except EOFError:
                return None

    return read
