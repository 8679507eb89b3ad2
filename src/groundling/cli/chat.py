"""chat: write with a model, turn by turn, in the terminal."""

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
Type a text, and the model goes on where it ends; Enter alone lets it write on. Alt-Enter begins a new line.
Ctrl-C stops what it writes, Ctrl-D or /quit ends the session.
  /reset        forget all that was written
  /again        forget the last answer and write another
  /help         this, and what is set
Each of these without a value tells what is set:"""


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
    loaded.stream("", sampling, max_new_tokens, **options)  # what is wrong is said before the first turn
    loaded.variants.decoder(precision)
    session = Session(loaded, sampling, max_new_tokens, options)
    note(f"{loaded.name} was not tuned for chat: it goes on with your text and does not answer it. /help tells more.")
    read = _reader()
    while (line := read()) is not None:
        if not session.take(line):
            return


class Session:
    """What was written so far, and how the next turn is to be written."""

    def __init__(self, run: Run, sampling: Sampling, max_new_tokens: int, options: dict[str, Any]) -> None:
        self._run, self._options = run, options
        self._sampling, self._max_new_tokens = sampling, max_new_tokens
        self._text = ""
        self._before = ""  # the text that the last answer goes on with
        self._turn = 0

    def take(self, line: str) -> bool:
        """Carry out a line; False if it ends the session. What is wrong with it is told, and changes nothing."""
        try:
            if not line.startswith("/"):
                self._go_on(self._text + ("\n" if self._text and not self._text.endswith("\n") else "") + line)
                return True
            name, _, value = line[1:].strip().partition(" ")
            if name == "quit":
                return False
            self._command(name.replace("-", "_"), value.strip())
        except ValueError as error:
            note(str(error))
        return True

    def _go_on(self, text: str) -> None:
        """Go on with `text`, printing as it comes, until Ctrl-C."""
        assert self._sampling.seed is not None
        sampling = dataclasses.replace(self._sampling, seed=(self._sampling.seed + self._turn) % 2**63)
        written = ""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that a session outgrows the context is no news
            pieces = self._run.stream(text, sampling, self._max_new_tokens, **self._options)
        # A terminal obeys control characters, and a stranger's model may generate any.
        shown = printable if sys.stdout.isatty() else str
        try:
            for piece in pieces:
                written += piece
                print(shown(piece), end="", flush=True)
        except KeyboardInterrupt:
            pass  # it stops the answer, not the session
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
            self._go_on(self._before)
        elif name not in KNOBS and name != "max_new_tokens":
            raise ValueError(f"There is no /{name.replace('_', '-')}; /help tells what there is.")
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
            raise ValueError(f"/{knob.replace('_', '-')} takes a number, and {value!r} is none.") from None
        if knob == "max_new_tokens":
            if number < 1:
                raise ValueError(f"/max-new-tokens must be 1 or more, and it is {number}.")
            self._max_new_tokens = number
        else:
            self._sampling = dataclasses.replace(self._sampling, **{knob: number})
            if knob == "seed":
                self._turn = 0


def _reader() -> Callable[[], str | None]:
    """What reads the next line of the user; it gives None at the end."""
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
