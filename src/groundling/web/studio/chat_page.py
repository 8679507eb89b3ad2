"""Chat with one or more runs side by side: each answers the same messages in its own way."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from dataclasses import dataclass

from nicegui import ui

from groundling.config import Sampling
from groundling.data.conversations import Message
from groundling.data.tokenizers.chat import ChatTokenizer
from groundling.escape import printable
from groundling.inference.calling import answered
from groundling.run.run import Run
from groundling.web.studio.parts import Strip, Text, errors_shown, frame
from groundling.web.studio.playground import for_strip, next_tokens, option
from groundling.web.studio.studio import Studio
from groundling.web.studio.writing import GeneratedToken, opened, write

_MAX_MESSAGE = 4000  # characters
_MOST_RUNS = 4
_MOST_CALLS = 8  # of tools in one turn
_ROOM = 16  # tokens that a reply needs at least


def chat_page(studio: Studio, name: str = "") -> None:
    """A conversation with the run `name`, or with the newest run."""
    with frame("Chat", "Chat"):
        names = studio.writers()
        if not names:
            Text("p", "No trained model yet. Start a run first.", "soft")
            return
        ChatPage(studio, names, name if name in names else names[0])


class ChatPage:
    """The next message, the sampling options, and a column for each run."""

    def __init__(self, studio: Studio, names: Sequence[str], first: str) -> None:
        self.studio, self.names = studio, names
        self.columns = list[Talk]()
        with Text("div", classes="bar"):
            self.more = ui.button("Add a run", on_click=self.add).props("outline")
            ui.button("New conversation", on_click=self.clear).props("outline")
        Text("p", "Runs that were tuned on chats answer. All others continue the text. Stronger color means less "
             "likely. Point at a token to see its alternatives; pick one in the last reply to continue from there.",
             "soft")  # fmt: skip
        self.talks = Text("div", classes="pair talks")
        with Text("div", classes="bar ask"):
            self.message = ui.textarea("Message").props(f"autogrow dense maxlength={_MAX_MESSAGE}").classes("grow")
            self.message.on("keydown.enter.exact.prevent", self.send)
            self.go = ui.button("Send", on_click=self.send)
            self.halt = ui.button("Stop", on_click=self.stop).props("outline")
        with Text("div", classes="knobs"):
            self.temperature = option("Temperature", 0.0, 2.0, 0.05, 0.7, "0: greedy")
            self.length = option("Max tokens", 10, 1000, 10, 200)
        self.halt.set_visibility(False)
        self.add(first)

    def add(self, name: object = None) -> None:
        """Another column, with `name` or the first run that has none."""
        taken = {column.name.value for column in self.columns}
        chosen = name if isinstance(name, str) else next((n for n in self.names if n not in taken), self.names[0])
        with self.talks:
            self.columns.append(Talk(self, chosen))
        self.more.set_visibility(len(self.columns) < min(_MOST_RUNS, len(self.names)))

    def clear(self) -> None:
        self.stop()
        for column in self.columns:
            column.clear()

    async def send(self) -> None:
        """Give all runs the message."""
        text = (self.message.value or "")[:_MAX_MESSAGE].strip()
        if not text or any(column.writing for column in self.columns):
            return
        self.message.value = ""
        await asyncio.gather(*(column.answer(text) for column in self.columns))

    def stop(self) -> None:
        for column in self.columns:
            column.halted.set()

    def update_buttons(self) -> None:
        writing = any(column.writing for column in self.columns)
        self.halt.set_visibility(writing)
        self.go.set_enabled(not writing)


@dataclass
class Reply:
    """The last reply: what the model read before it, the messages without it, and its tokens."""

    strip: Strip
    before: list[int]
    messages: list[Message]
    tokens: list[GeneratedToken]


class Talk:
    """The conversation with one run."""

    def __init__(self, page: ChatPage, chosen: str) -> None:
        self.page, self.studio = page, page.studio
        self.messages, self.text = list[Message](), ""
        self.halted, self.writing = threading.Event(), False
        self.reply: Reply | None = None
        with Text("section", classes="talk"):
            self.name = ui.select(list(page.names), value=chosen, label="Run", on_change=self.clear).props("dense")
            self.turns = Text("div", classes="turns").props("role=log")
            self.status = Text("p", "", "soft").props('role="status"')
        ui.context.client.on_disconnect(self.halted.set)

    def clear(self) -> None:
        """Forget the conversation."""
        self.halted.set()
        self.messages, self.text, self.reply = [], "", None
        self.turns.clear()
        self.status.set_text("")

    async def answer(self, text: str) -> None:
        """Add the user's message, and let the run answer it."""
        with errors_shown():
            run = await asyncio.to_thread(opened, self.studio.folder(self.name.value))
            with self.turns:
                Text("p", printable(text), "said").props("dir=auto")
            if isinstance(run.tokenizer, ChatTokenizer):
                await self.answer_messages(run, run.tokenizer, [*self.messages, Message("user", text)])
            else:
                await self.continue_text(run, text)

    async def answer_messages(self, run: Run, tokenizer: ChatTokenizer, messages: list[Message]) -> None:
        """Write the assistant's turn, and what follows the tools that it calls."""
        for _ in range(_MOST_CALLS):
            before = _fitting(tokenizer, messages, run.config.model.block_size)
            self.reply = Reply(self.strip(), before, messages, [])
            results = await self.finish(run, tokenizer, self.reply)
            if not results:
                return
            messages = [*self.messages, *results]
            with self.turns:
                for result in results:
                    Text("p", printable(result.content), "said tool")

    async def finish(self, run: Run, tokenizer: ChatTokenizer, reply: Reply) -> list[Message]:
        """Write the rest of a reply. Returns the results of the tools that it calls."""
        await self.write(run, reply)
        message = tokenizer.parse(token.token for token in reply.tokens)
        self.messages = [*reply.messages, message]
        return [] if self.halted.is_set() else answered(message)

    async def continue_text(self, run: Run, text: str) -> None:
        """Continue everything so far, in a new line."""
        whole = self.text + ("\n" if self.text and not self.text.endswith("\n") else "") + text
        self.reply = Reply(self.strip(), run.prompt_ids(whole), [], [])
        await self.write(run, self.reply)
        self.text = whole + "".join(token.text for token in self.reply.tokens)

    def strip(self) -> Strip:
        with self.turns:
            number = sum(isinstance(element, Strip) for element in self.turns)
            strip = Strip(f"Reply {number + 1} of {self.name.value}", lambda at, choice: self.branch(strip, at, choice))
        return strip

    async def branch(self, strip: Strip, at: int, choice: int) -> None:
        """Replace a token of the last reply with one of its alternatives, and continue from there."""
        with errors_shown():
            reply = self.reply
            if reply is None or strip is not reply.strip or self.writing or not 0 <= at < len(reply.tokens):
                return
            old = reply.tokens[at]
            if not 0 <= choice < len(old.choices):
                return
            new = old.choices[choice]
            run = await asyncio.to_thread(opened, self.studio.folder(self.name.value))
            text = "".join(token.text for token in reply.tokens)
            reply.tokens[at:] = [GeneratedToken(new.token, new.text, new.probability, old.choices)]
            if isinstance(run.tokenizer, ChatTokenizer):
                await self.finish(run, run.tokenizer, reply)
            else:
                await self.write(run, reply)
                self.text = self.text.removesuffix(text) + "".join(token.text for token in reply.tokens)

    async def write(self, run: Run, reply: Reply) -> None:
        """Continue a reply to its end, showing tokens as they come."""
        sampling = Sampling(temperature=self.page.temperature.value, top_k=0, seed=None)
        reply.strip.begin("", [for_strip(token) for token in reply.tokens])
        left = max(int(self.page.length.value) - len(reply.tokens), 0)
        if reply.tokens and reply.tokens[-1].token in run.tokenizer.end_ids:
            left = 0
        self.halted.clear()
        self.writing = True
        self.page.update_buttons()
        try:
            tokens = write(run, [*reply.before, *(token.token for token in reply.tokens)], sampling, left)
            while new := await asyncio.to_thread(next_tokens, tokens, self.halted, self.studio.closing):
                reply.tokens += new
                reply.strip.add([for_strip(token) for token in new])
        finally:
            self.writing = False
            self.page.update_buttons()
        ended = bool(reply.tokens) and reply.tokens[-1].token in run.tokenizer.end_ids
        self.status.set_text(f"{len(reply.tokens):,} tokens{'' if ended else ', not ended'}")


def _fitting(tokenizer: ChatTokenizer, messages: Sequence[Message], block_size: int) -> list[int]:
    """The ids of the newest messages that leave room for a reply, from a user's message on. At least the last one."""
    starts = [i for i, message in enumerate(messages) if message.role == "user"]
    for start in starts:
        ids = tokenizer.render(messages[start:], add_generation_prompt=True).ids
        if len(ids) + _ROOM <= block_size:
            break
    return ids
