"""The tasks of the package reasoning-gym as environments. It makes the questions; our own code checks the answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from groundling.config import did_you_mean
from groundling.environments.countdown import uses_each_once
from groundling.environments.environment import LONGEST_ANSWER, Drawn, Draws, Environment, Item

PREFIX = "reasoning-gym:"
_SEED = 1  # its items are functions of seed + index, so a second seed would give the same ones

_EASY: dict[str, dict[str, Any]] = {
    "base_conversion": {"max_base": 10, "max_value": 255},
    "chain_sum": {"min_terms": 2, "max_terms": 3, "min_digits": 1, "max_digits": 2},
    "count_bits": {"max_n": 255},
    "countdown": {
        "min_numbers": 3,
        "max_numbers": 3,
        "max_value": 20,
        "min_target": 1,
        "max_target": 60,
        "operators": ("+", "-", "*"),
    },
    "gcd": {"max_value": 100},
    "lcm": {"max_value": 20},
    "letter_counting": {"min_words": 1, "max_words": 2},
    "products": {"min_terms": 2, "max_terms": 2, "max_digits": 2},
    "spell_backward": {"min_word_len": 3, "max_word_len": 5},
}  # fmt: skip
_SHORT: dict[str, Callable[[Mapping[str, Any]], str]] = {  # its own prompts are long sentences
    "chain_sum": lambda metadata: metadata["expression"].replace(" ", "") + "=",
    "countdown": lambda metadata: f"{' '.join(map(str, metadata['numbers']))} -> {metadata['target']}",
    "spell_backward": lambda metadata: f"reverse: {metadata['word']}",
}


class ReasoningGym(Environment):
    """One of its datasets. An answer is right if it equals the dataset's own, character by character: its own checks
    pay for parts of an answer, and some run what a model wrote. `countdown` has many answers and is checked by ours.
    """

    levels: ClassVar = {
        1: "easy settings and short prompts, where we know some",
        2: "reasoning-gym's own settings and prompts",
    }

    def __init__(self, name: str) -> None:
        """Raises ValueError if the package is missing or has no such dataset."""
        super().__init__()
        try:
            from reasoning_gym import create_dataset
            from reasoning_gym.factory import DATASETS
        except ModuleNotFoundError as error:
            raise ValueError(f'{PREFIX}{name:.60} needs {error.name}: pip install "groundling[tasks]".') from None
        known = sorted(DATASETS.keys() - {"composite"})  # made of others, which its settings name
        if name not in known:
            raise ValueError(f"reasoning-gym has no dataset {name!r:.60}{did_you_mean(name, known)}.")
        self.name, self._dataset = PREFIX + name, name
        self.about = f"The dataset {name} of reasoning-gym."
        self._sources = {
            level: create_dataset(name, seed=_SEED, size=1, **settings)
            for level, settings in ((1, _EASY.get(name, {})), (2, {}))
        }

    def draw(self, draws: Draws, level: int) -> Drawn | None:
        """As in `Environment`."""
        found = self._sources[level][draws.below(2**31)]  # any index will do: `size` only ends loops over it
        question, answer = found["question"], found["answer"]
        data: dict[str, Any] = {}
        if self._dataset == "countdown":
            answer = answer.replace(" ", "")
            data = {key: found["metadata"][key] for key in ("numbers", "target")}
            if not uses_each_once(answer, **data):
                return None  # it begins with a sign
        if not isinstance(answer, str) or not 0 < len(answer) <= LONGEST_ANSWER or {"#", "|"} & set(answer):
            return None
        short = _SHORT.get(self._dataset) if level == 1 else None
        return Drawn(short(found["metadata"]) if short else question, "", answer, question, data)

    def right(self, item: Item, answer: str) -> bool:
        if self._dataset == "countdown":
            return uses_each_once(answer, item.data["numbers"], item.data["target"])
        return answer == item.answer

    def well_formed(self, answer: str) -> bool:
        return bool(answer)  # what an answer looks like, only the dataset knows

    def longest(self, level: int = 0) -> tuple[int, int]:
        """The longest prompt and `#answer` of 200 items. Others may be longer."""
        items = [self.item(i, "train", level) for i in range(200)]
        return max(len(item.prompt) for item in items), max(len(item.answer) for item in items) + 1
