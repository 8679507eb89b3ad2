"""What every environment has: numbered items in three disjoint parts, an exact reward, and examples to train on."""

from __future__ import annotations

import hashlib
import json
import threading
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, TypeVar, get_args

from groundling.config import Limits
from groundling.data.conversations import Message, ToolCall
from groundling.environments.calculator import calculate

T = TypeVar("T")
Part = Literal["train", "validation", "test"]
Style = Literal["working", "answer", "tool", "shuffled", "answer-first"]
PARTS: tuple[Part, ...] = get_args(Part)
STYLES: tuple[Style, ...] = get_args(Style)

INDEX = Limits(0)
LONGEST_ANSWER = 64
_DISTINCT = 5_000  # items of a held-out part that are kept distinct, because each needs to know the ones before
_ATTEMPTS = 2_000
_REPEATED = 500  # attempts after which a held-out part is taken to have no other items


@dataclass(frozen=True)
class Item:
    """One question. `data` is for the check and holds the level; `calls`, if there, are the steps for a calculator."""

    index: int
    part: Part
    prompt: str
    working: str
    answer: str
    data: Mapping[str, Any]


@dataclass(frozen=True)
class Drawn:
    """The content of an item. `key` is what must not be in two parts: `47+38` and `38+47` have the same."""

    prompt: str
    working: str
    answer: str
    key: str
    data: Mapping[str, Any] = field(default_factory=dict)


class Draws:
    """Random numbers that are a function of a text: the same on every machine and with every version of Python."""

    def __init__(self, text: str) -> None:
        self._number = int.from_bytes(hashlib.blake2b(text.encode()).digest(), "big")  # 512 bits, enough for any item

    def below(self, n: int) -> int:
        """A number from 0 to `n - 1`."""
        self._number, drawn = divmod(self._number, n)
        assert self._number >> 64, "an item needs more than 448 random bits"
        return drawn

    def choice(self, options: Sequence[T]) -> T:
        """One of the options."""
        return options[self.below(len(options))]

    def shuffled(self, options: Sequence[T]) -> list[T]:
        """All options in a random order."""
        rest = list(options)
        return [rest.pop(self.below(len(rest))) for _ in options]


class Environment(ABC):
    """A task with verifiable rewards. Subclasses define the class attributes and `draw`."""

    name: str
    """What `--task` calls it."""
    version: int = 1
    """Raise it when items change: a run records it."""
    about: str
    """A sentence for `groundling tasks`."""
    levels: ClassVar[dict[int, str]]
    """What each level asks, from the easiest on."""
    default_level: int = 1

    def __init__(self) -> None:
        self._held_out: dict[tuple[Part, int], tuple[list[Item], set[str]]] = {}
        self._lock = threading.Lock()

    @abstractmethod
    def draw(self, draws: Draws, level: int) -> Drawn | None:
        """The content of an item, or None if these random numbers give none."""

    @abstractmethod
    def longest(self, level: int = 0) -> tuple[int, int]:
        """Most characters of a prompt, and of a reply in the style `working`."""

    def well_formed(self, answer: str) -> bool:
        """Whether `answer` could be the answer of some item."""
        return answer.isascii() and answer.isdigit() and str(int(answer)) == answer

    def right(self, item: Item, answer: str) -> bool:
        """Whether `answer`, of at most 64 characters, is right."""
        return answer == item.answer

    def chance(self, level: int = 0) -> float:
        """The accuracy of a guess that knows nothing of the question: the answer most common in 1,000 items of the
        train part, measured on the next 1,000."""
        answers = [self.item(i, "train", level).answer for i in range(2_000)]
        ((common, _),) = Counter(answers[:1_000]).most_common(1)
        return answers[1_000:].count(common) / 1_000

    def checked_level(self, level: int) -> int:
        """`level`, or the default for 0. Raises ValueError if there is no such level."""
        Limits(0, max(self.levels)).check("--level", level)
        return level or self.default_level

    def item(self, index: int, part: Part = "train", level: int = 0) -> Item:
        """Item `index` of a part, always the same. Level 0 is the default level.

        A hash of the content decides the part: 80 % train, 10 % validation, 10 % test. So no question is in two parts,
        at any level. The first 5,000 of validation and of test differ from each other as long as there are others
        left; in train, an item repeats as often as chance has it.
        """
        level = self.checked_level(level)
        INDEX.check("index", index)
        if part not in PARTS:
            raise ValueError(f"part must be one of {', '.join(PARTS)}, not {part!r:.40}.")
        if part == "train" or index >= _DISTINCT:
            return self._first(index, part, level, set())
        with self._lock:
            items, seen = self._held_out.setdefault((part, level), ([], set()))
            while len(items) <= index:
                items.append(self._first(len(items), part, level, seen))
        return items[index]

    def _first(self, index: int, part: Part, level: int, seen: set[str]) -> Item:
        """The first draw for `index` that falls into the part and is not in `seen`, which it joins."""
        for attempt in range(_ATTEMPTS):
            drawn = self.draw(Draws(f"{self.name} {self.version} {level} {index} {attempt}"), level)
            if attempt == _REPEATED:
                seen.clear()  # all were used, so they may come again
            if drawn and drawn.key not in seen and self._part(drawn.key) == part:
                seen.add(drawn.key)
                data = {**drawn.data, "level": level}
                return Item(index, part, drawn.prompt, drawn.working, drawn.answer, data)
        raise ValueError(f"{self.name} has too few usable items at level {level}. Use another level or environment.")

    def _part(self, key: str) -> Part:
        digest = hashlib.blake2b(f"{self.name} {key}".encode(), digest_size=8).digest()
        return {0: PARTS[1], 1: PARTS[2]}.get(int.from_bytes(digest, "big") % 10, PARTS[0])

    def score(self, item: Item, text: str) -> dict[str, float]:
        """The reward of a reply, and whether it has an answer at all and one of the right form, as 1.0 or 0.0.

        The answer is what follows the last `#`. A working may follow it after `|`. Nothing else may: no space, line
        break or leading zero.
        """
        _, mark, rest = text.rpartition("#")
        answer = rest[: LONGEST_ANSWER + 1].partition("|")[0] if mark else ""
        short = 0 < len(answer) <= LONGEST_ANSWER
        return {
            "reward": float(short and self.right(item, answer)),
            "answered": float(bool(mark)),
            "well_formed": float(short and self.well_formed(answer)),
        }

    def reward(self, item: Item, text: str) -> float:
        """1.0 if the answer in `text`, which a model wrote, is right, and 0.0 if not. See `score`."""
        return self.score(item, text)["reward"]

    def messages(self, item: Item, style: Style = "working") -> tuple[Message, ...]:
        """A conversation about the item that ends in the right answer.

        - `working`: the working, then the answer
        - `answer`: only the answer
        - `tool`: calls of a calculator, then the answer
        - `shuffled`: the working of another item, then the right answer: as long, but of no use
        - `answer-first`: the answer, then the working
        """
        if style not in STYLES:
            raise ValueError(f"--style must be one of {', '.join(STYLES)}, not {style!r:.40}.")
        if style == "tool" and "calls" not in item.data:
            raise ValueError(f"--style tool: {self.name} needs no calculator. Use --style working.")
        if style not in ("answer", "tool") and not item.working:
            raise ValueError(f"--style {style}: {self.name} has no working. Use --style answer.")
        steps: list[Message] = []
        if style == "tool":
            for expression in item.data["calls"]:
                call = ToolCall("calculator", json.dumps({"expression": expression}))
                steps += [Message("assistant", calls=(call,)), Message("tool", calculate(expression))]
        working = item.working
        if style == "shuffled":
            working = self.item(item.index + 1, item.part, item.data["level"]).working
        reply = {"answer": "", "tool": "", "answer-first": ""}.get(style, f"{working};") + f"#{item.answer}"
        if style == "answer-first":
            reply += f"|{working}"
        return Message("user", item.prompt), *steps, Message("assistant", reply)
