"""The command chat: write with a model, turn by turn, in the terminal."""

from __future__ import annotations

import dataclasses
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import TYPE_CHECKING, Annotated, Any

from groundling.cli.app import Out, Precision, RunReference, Text, Unknown, app, note, tee
from groundling.cli.flags import with_settings
from groundling.config import Sampling
from groundling.config.limits import Limits

if TYPE_CHECKING:
    from groundling.run.run import Run

SETTINGS: dict[str, Callable[[str], Any]] = {"max-new-tokens": int} | {
    field.name.replace("_", "-"): int if "int" in str(field.type) else float
    for field in dataclasses.fields(Sampling)
    if "help" in field.metadata
}
"""What can be set in a session."""

_KEYS = "Ctrl-C stops the answer. Ctrl-D or /quit ends the session."
HELP = f"""\
Type some text and the model continues it. Enter alone lets it continue. Alt-Enter starts a new line.
{_KEYS}
  /reset        forget everything so far
  /again        replace the last answer with another one
  /help         show this help and the settings
Settings, with a value to change them or without one to show them:"""
CHAT_HELP = f"""\
Write a message and the model replies. Alt-Enter starts a new line. {_KEYS}
  /system TEXT  set the system message and forget the chat; without TEXT: no system message
  /reset        forget the chat, and keep the system message
  /again        replace the last reply with another one
  /help         show this help and the settings
Settings, with a value to change them or without one to show them:"""


@app.command(sort_key=3)
@with_settings("sampling")
def chat(
    run: RunReference,
    /,
    *,
    max_new_tokens: int = 300,
    stop: Annotated[tuple[str, ...], Text] = (),
    precision: Precision = "float32",
    unknown: Unknown = "error",
    out: Out = None,
    **settings: Any,
) -> None:
    """Chat with a model that was tuned on conversations. Others continue your text. /help lists what you can set.

    Args:
        max_new_tokens: How many tokens to generate in a turn.
        stop: End a turn where this text appears. Repeat the flag for several.
    """
    from groundling.data.tokenizers.chat import ChatTokenizer
    from groundling.run.store import load

    sampling = Sampling(**settings)
    loaded = load(run, out=out)
    options: dict[str, Any] = {"stop": stop, "precision": precision, "unknown": unknown}
    loaded.stream("", sampling, max_new_tokens, **options)  # refuses wrong options before the first turn
    loaded.variants.decoder(precision)
    session: Session
    if isinstance(loaded.tokenizer, ChatTokenizer):
        session = ChatSession(loaded, sampling, max_new_tokens, options)
    else:
        session = Session(loaded, sampling, max_new_tokens, options)
        note(f"{loaded.name} is not a chat model: it continues your text instead of answering. /help shows more.")
    read = _reader()
    while (line := read()) is not None:
        if not session.take(line):
            return


class Session:
    """The text so far, and the settings of the next turn."""

    help = HELP

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
                self._say(line)
                return True
            name, _, value = line[1:].strip().partition(" ")
            if name == "quit":
                return False
            self._command(name.replace("_", "-"), value.strip())
        except ValueError as error:
            note(str(error))
        return True

    def _say(self, line: str) -> None:
        line, said = self._run.tokenizer.fit_prompt(line)
        if said:
            note(said)
        self._continue(self._text + ("\n" if self._text and not self._text.endswith("\n") else "") + line)

    def _continue(self, text: str) -> None:
        with warnings.catch_warnings(action="ignore"):  # a session may outgrow the context
            pieces = self._run.stream(text, self._next_sampling(), self._max_new_tokens, **self._options)
        self._before, self._text = text, text + self._show(pieces)

    def _next_sampling(self) -> Sampling:
        """Each turn has the next seed."""
        assert self._sampling.seed is not None
        return dataclasses.replace(self._sampling, seed=(self._sampling.seed + self._turn) % 2**63)

    def _show(self, pieces: Iterator[str]) -> str:
        """Print the pieces as they come, until Ctrl-C. Returns what was printed."""
        written = ""
        try:
            for piece in tee(pieces):
                written += piece
        except KeyboardInterrupt:
            pass  # stops the answer, not the session
        print(flush=True)
        self._turn += 1
        return written

    def _reset(self) -> None:
        self._text = self._before = ""
        self._turn = 0

    def _again(self) -> None:
        self._continue(self._before)

    def _command(self, name: str, value: str) -> None:
        if name == "help":
            print(self.help)
            for setting in SETTINGS:
                print(f"  /{setting} {self._value(setting)}")
        elif name == "reset":
            self._reset()
        elif name == "again":
            self._again()
        elif name not in SETTINGS:
            raise ValueError(f"There is no /{name}. /help lists the commands.")
        elif not value:
            print(f"{name} {self._value(name)}")
        else:
            self._set(name, value)

    def _value(self, setting: str) -> object:
        return self._max_new_tokens if setting == "max-new-tokens" else vars(self._sampling)[setting.replace("-", "_")]

    def _set(self, setting: str, value: str) -> None:
        try:
            number = SETTINGS[setting](value)
        except ValueError:
            raise ValueError(f"/{setting} takes a number, not {value!r}.") from None
        if setting != "max-new-tokens":
            self._sampling = dataclasses.replace(self._sampling, **{setting.replace("-", "_"): number})
            if setting == "seed":
                self._turn = 0
        else:
            Limits(1).check("/max-new-tokens", number)
            self._max_new_tokens = number


class ChatSession(Session):
    """A conversation, and the settings of the next turn."""

    help = CHAT_HELP

    def __init__(self, run: Run, sampling: Sampling, max_new_tokens: int, options: dict[str, Any]) -> None:
        super().__init__(run, sampling, max_new_tokens, options)
        self._start()

    def _start(self, system: str = "") -> None:
        from groundling.data.conversations import Message

        messages = [Message("system", system)] if system else None
        options = {name: self._options[name] for name in ("precision", "unknown")}
        self._chat = self._run.start_chat(note, messages, **options)
        self._system, self._turn = system, 0

    def _say(self, line: str) -> None:
        self._chat.say(line)
        self._reply()

    def _reply(self) -> None:
        n = len(self._chat.messages)
        with closing(self._chat.reply(self._next_sampling(), self._max_new_tokens, self._options["stop"])) as pieces:
            try:
                self._show(pieces)
            except ValueError:
                self._chat.forget(n - 1)  # the message cannot be read
                raise

    def _reset(self) -> None:
        self._start(self._system)

    def _again(self) -> None:
        turns = [i for i, message in enumerate(self._chat.messages) if message.role == "user"]
        if not turns:
            raise ValueError("There is no reply to replace yet. Write a message first.")
        self._chat.forget(turns[-1] + 1)
        self._reply()

    def _command(self, name: str, value: str) -> None:
        if name == "system":
            self._start(value)
        else:
            super()._command(name, value)


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
