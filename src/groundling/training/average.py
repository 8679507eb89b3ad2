"""Exponential moving average (EMA) of the weights. The average is what is evaluated, sampled and saved."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
import torch.nn as nn

from groundling.model.describe import Shape
from groundling.parallel.shards import local, row_orders
from groundling.parallel.whole import own_part

_TRAINED = "/trained"


class WeightAverage:
    """A second copy of the weights that follows the trained ones.

    It averages over the last `share` of all steps so far (Karras et al., "Analyzing and Improving the
    Training Dynamics of Diffusion Models", 2024, section 3.1). With share 0 it does nothing, and the trained
    weights are saved.
    """

    def __init__(self, model: nn.Module, share: float) -> None:
        self._share = share
        self._parameters: dict[str, torch.Tensor] = dict(model.named_parameters())
        self._orders = row_orders(model)
        self._averages: dict[str, torch.Tensor] = {}

    @torch.no_grad()
    def update(self, before: int, applied: torch.Tensor | None = None) -> None:
        """Add the weights after a step that followed `before` others. If `applied`, a scalar, is 0, the step was
        skipped."""
        if not self._share:
            return
        if not self._averages:
            self._averages = {name: p.detach().clone() for name, p in self._parameters.items()}
            return
        averages = [local(average) for average in self._averages.values()]
        trained = [local(self._parameters[name]) for name in self._averages]
        rate = 1 / (1 + self._share * before)
        torch._foreach_lerp_(averages, trained, rate if applied is None else [rate * applied] * len(trained))

    @contextmanager
    def applied(self) -> Iterator[None]:
        """A context in which the model's tensors are the average."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for name, average in self._averages.items():
            trained = self._parameters[name].clone()
            self._parameters[name].copy_(average)
            average.copy_(trained)

    def finish(self) -> None:
        """Put the average into the model, and start a new average."""
        self._swap()
        self.forget()

    def forget(self) -> None:
        self._averages = {}

    def weights(self) -> dict[str, torch.Tensor]:
        """The weights to save as the model."""
        return {name: self._averages.get(name, p.detach()) for name, p in self._parameters.items()}

    def state_dict(self) -> dict[str, torch.Tensor]:
        """The trained weights, if the average is saved as the model."""
        return {name + _TRAINED: self._parameters[name].detach() for name in self._averages}

    def state_shapes(self) -> dict[str, Shape]:
        """The shapes of `state_dict()` after the first step."""
        return {name + _TRAINED: tuple(p.shape) for name, p in self._parameters.items()} if self._share else {}

    @torch.no_grad()
    def load_state_dict(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """The inverse of `state_dict`, for a model that holds its saved weights."""
        self.forget()
        for key, trained in tensors.items():
            parameter = self._parameters[key.removesuffix(_TRAINED)]
            self._averages[key.removesuffix(_TRAINED)] = parameter.detach().clone()
            parameter.copy_(own_part(trained, parameter, self._orders.get(key.removesuffix(_TRAINED))))
