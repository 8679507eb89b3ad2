"""ModelVariants: a trained model prepared for generation in each precision, made once and used for every text."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING

from groundling.acceleration.ngram_drafter import NgramDrafter
from groundling.acceleration.precision import Precision, with_precision
from groundling.model.gpt import GPT

if TYPE_CHECKING:  # imports Numba, which may be missing
    from groundling.acceleration.numba_decoder import NumbaDecoder


class ModelVariants:
    """The variants of one model, each made on first use."""

    def __init__(self, model: GPT) -> None:
        self._original = model
        self._models: dict[Precision, GPT] = {}
        self._decoders: dict[Precision, NumbaDecoder | None] = {}
        self.drafter = NgramDrafter()  # shared by all variants; learns from the texts they generate

    def model(self, precision: Precision) -> GPT:
        """The model with weights in `precision`. Raises ValueError for an unknown one."""
        if precision not in self._models:
            self._models[precision] = with_precision(self._original, precision)
        return self._models[precision]

    def decoder(self, precision: Precision) -> NumbaDecoder | None:
        """A faster way to decode a few tokens. None on a GPU or without Numba (the extra `fast`).

        Making it takes half a second. The first time on a machine it takes some seconds more, to compile. It is used
        for texts of every length: its last digits differ from PyTorch's, and a text must not depend on earlier ones.
        """
        if precision not in self._decoders:
            self._decoders[precision] = None
            if self._original.device.type == "cpu" and importlib.util.find_spec("numba") is not None:
                from groundling.acceleration.numba_decoder import NumbaDecoder

                self._decoders[precision] = NumbaDecoder(self._original, precision)
        return self._decoders[precision]
