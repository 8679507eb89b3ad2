"""A trained model, ready to generate: the variants of it that are made once and used for every text."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING

from groundling.acceleration.ngram_drafter import NgramDrafter
from groundling.acceleration.precision import Precision, with_precision
from groundling.model.gpt import GPT

if TYPE_CHECKING:  # it imports Numba, which may be missing
    from groundling.acceleration.numba_decoder import NumbaDecoder


class ModelVariants:
    """A model in each precision that is asked for."""

    def __init__(self, model: GPT) -> None:
        self._own = model
        self._models: dict[Precision, GPT] = {}
        self._decoders: dict[Precision, NumbaDecoder | None] = {}
        self.drafter = NgramDrafter()
        """It learns from the texts that are generated."""

    def model(self, precision: Precision) -> GPT:
        """The model with its weights in that precision. Raises ValueError for an unknown one."""
        if precision not in self._models:
            self._models[precision] = with_precision(self._own, precision)
        return self._models[precision]

    def decoder(self, precision: Precision) -> NumbaDecoder | None:
        """What decodes few tokens faster than the model. None without Numba (the extra `fast`), and on a GPU.

        Making it takes half a second, and some seconds the first time on a machine, when it is compiled. It is used
        for every text, whatever its length: its last digits differ from PyTorch's, and a text must not depend on what
        was generated before it.
        """
        if precision not in self._decoders:
            self._decoders[precision] = None
            if self._own.device.type == "cpu" and importlib.util.find_spec("numba") is not None:
                from groundling.acceleration.numba_decoder import NumbaDecoder

                self._decoders[precision] = NumbaDecoder(self._own, precision)
        return self._decoders[precision]
