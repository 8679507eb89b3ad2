"""A name in, tasks with verifiable rewards out: numbered questions, an exact check of answers, examples to train on."""

from groundling.config import did_you_mean
from groundling.environments.arithmetic import Multiply, Sums
from groundling.environments.countdown import Countdown
from groundling.environments.environment import PARTS, STYLES, Environment, Item, Part, Style
from groundling.environments.reasoning_gym import PREFIX, ReasoningGym
from groundling.environments.swaps import Swaps
from groundling.environments.words import Count, Reverse

__all__ = ["ENVIRONMENTS", "PARTS", "STYLES", "Environment", "Item", "Part", "Style", "find_environment"]

ENVIRONMENTS: dict[str, Environment] = {
    each.name: each for each in (Reverse(), Count(), Swaps(), Sums(), Multiply(), Countdown())
}


def find_environment(name: str) -> Environment:
    """The environment of this name, which may be `reasoning-gym:NAME`. Raises ValueError if there is none."""
    if name.startswith(PREFIX):
        return ReasoningGym(name.removeprefix(PREFIX))
    if name not in ENVIRONMENTS:
        raise ValueError(
            f"There is no environment {name!r:.60}{did_you_mean(name, list(ENVIRONMENTS))}. "
            f"Choose one of {', '.join(ENVIRONMENTS)}, or {PREFIX}NAME."
        )
    return ENVIRONMENTS[name]
