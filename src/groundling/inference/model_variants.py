"""A trained model, ready to write: what is made once, and used by each text."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING

from groundling.inference.ngram_drafter import Drafts
from groundling.inference.precision import Precision, with_precision
from groundling.model.gpt import GPT

if TYPE_CHECKING:  # it imports Numba, which may be missing
    from groundling.inference.numba_decoder import FewTokens


class Ready:
    """A model in each precision that is asked for."""

    def __init__(self, model: GPT) -> None:
        self._own = model
        self._models: dict[Precision, GPT] = {}
        self._few_tokens: dict[Precision, FewTokens | None] = {}
        self.drafts = Drafts()
        """What followed what in the texts that were written."""

    def model(self, precision: Precision) -> GPT:
        """The model with its weights in that precision. Raises ValueError for an unknown one."""
        if precision not in self._models:
            self._models[precision] = with_precision(self._own, precision)
        return self._models[precision]

    def few_tokens(self, precision: Precision, make: bool = True) -> FewTokens | None:
        """What reads few tokens faster than the model; None without Numba (the extra `fast`), and for a GPU.

        To make it takes half a second, and some seconds for the first time on a machine, when it is compiled; if not
        `make`, it is given if it is there.
        """
        if make and precision not in self._few_tokens:
            self._few_tokens[precision] = None
            if self._own.device.type == "cpu" and importlib.util.find_spec("numba") is not None:
                from groundling.inference.numba_decoder import FewTokens

                self._few_tokens[precision] = FewTokens(self._own, precision)
        return self._few_tokens.get(precision)
