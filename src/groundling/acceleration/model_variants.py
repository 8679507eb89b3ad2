"""ModelVariants: a trained model prepared for generation in each precision, made once and used for every text."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from functools import cache, partial
from typing import TYPE_CHECKING

from groundling.acceleration.precision import Precision, with_precision
from groundling.inference.ngram_drafter import NgramDrafter
from groundling.model.gpt import GPT

if TYPE_CHECKING:  # imports Numba, which may be missing
    from groundling.acceleration.numba_decoder import NumbaDecoder


class ModelVariants:
    """The variants of one model, each made on first use. See `with_precision` and `fast_decoder`."""

    def __init__(self, model: GPT) -> None:
        self.model: Callable[[Precision], GPT] = cache(partial(with_precision, model))
        self.decoder: Callable[[Precision], NumbaDecoder | None] = cache(partial(fast_decoder, model))
        self.drafter = NgramDrafter()  # shared by all variants; learns from the texts they generate


def fast_decoder(model: GPT, precision: Precision) -> NumbaDecoder | None:
    """A faster way to decode a few tokens. None on a GPU or without Numba (the extra `fast`).

    Making it takes half a second. The first time on a machine it takes some seconds more, to compile. It is used for
    texts of every length: its last digits differ from PyTorch's, and a text must not depend on earlier ones.
    """
    if model.device.type != "cpu" or importlib.util.find_spec("numba") is None:
        return None
    from groundling.acceleration.numba_decoder import NumbaDecoder

    return NumbaDecoder(model, precision)
