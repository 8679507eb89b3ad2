"""Parameter groups and optimizers; their state as named tensors, for open files."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from groundling.config import TrainingSettings
from groundling.model.describe import Shape
from groundling.model.gpt import GPT, SelfAttention, SwigluMLP

_TRAINED = "trained"  # the weights that training goes on with, where the model is their average
TEACHER = "teacher"  # the weights of the generation before


class Optimizers:
    """One or several optimizers as one. `schedule` sets all learning rates, each relative to its own peak.

    Where `average` is not 0, a second copy of the weights follows them at a distance: their average over the latest
    steps, that share of all so far (Karras et al., "Analyzing and Improving the Training Dynamics of Diffusion Models",
    2024, section 3.1). It is what is evaluated, sampled and saved as the model.

    After the first generation, a last copy are the weights of the model that teaches: see objective.py.
    """

    def __init__(self, *optimizers: torch.optim.Optimizer, average: float = 0.0) -> None:
        self.optimizers = optimizers
        self.average = average
        self._averages: dict[torch.Tensor, torch.Tensor] = {}
        self._teacher: dict[torch.Tensor, torch.Tensor] = {}
        self._owners = {p: o for o in optimizers for group in o.param_groups for p in group["params"]}
        for group in self.groups:
            group["peak"] = group["lr"]

    @property
    def groups(self) -> list[dict[str, Any]]:
        return [group for optimizer in self.optimizers for group in optimizer.param_groups]

    def schedule(self, factor: float) -> None:
        for group in self.groups:
            group["lr"] = factor * group["peak"]

    def step(self, before: int = 0) -> None:
        """One step, `before` of which were made; it decides how far back the average reaches."""
        for optimizer in self.optimizers:
            optimizer.step()
        if self.average:
            self._follow(1 / (1 + self.average * before))

    @torch.no_grad()
    def _follow(self, share: float) -> None:
        if self._averages:
            torch._foreach_lerp_(list(self._averages.values()), list(self._averages), share)
        else:
            self._averages = {p: p.detach().clone() for p in self._owners}

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """The weights are their averages meanwhile; the same tensors, with other numbers in them."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        for weights, average in self._averages.items():
            trained = weights.clone()
            weights.copy_(average)
            average.copy_(trained)

    def zero_grad(self) -> None:
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)

    def forget(self) -> None:
        """Back to the state before the first step."""
        for optimizer in self.optimizers:
            optimizer.state.clear()
        self._averages, self._teacher = {}, {}

    def succeed(self) -> None:
        """The model as it would be saved becomes the teacher; all else is as before the first step."""
        with self.averaged():
            teacher = {p: p.detach().clone() for p in self._owners}
        self.forget()
        self._teacher = teacher

    @torch.no_grad()
    def teach(self, model: GPT, teacher: GPT) -> None:
        """Fill `teacher`, a model like the `model` that learns, with the teacher's weights."""
        for mine, its in zip(model.parameters(), teacher.parameters(), strict=True):
            its.copy_(self._teacher[mine])

    def state_of(self, parameter: torch.nn.Parameter) -> dict[str, Any]:
        """The state that belongs to `parameter`, to be read or filled."""
        state: dict[str, Any] = self._owners[parameter].state[parameter]
        return state

    def quantities(self, parameter: torch.nn.Parameter) -> tuple[str, ...]:
        """What training keeps for each number of `parameter`: AdamW's two moments, or Muon's momentum; where the model
        is saved as an average, the number itself."""
        moments = ("momentum",) if isinstance(self._owners[parameter], Muon) else ("exp_avg", "exp_avg_sq")
        return (*moments, _TRAINED) if self.average else moments

    def tensors_of(self, parameter: torch.nn.Parameter) -> dict[str, torch.Tensor]:
        """The state of `parameter` by the names that it has in a file."""
        trained = {_TRAINED: parameter.detach()} if parameter in self._averages else {}
        teacher = {TEACHER: self._teacher[parameter]} if self._teacher else {}
        return self.state_of(parameter) | trained | teacher

    @torch.no_grad()
    def fill(self, parameter: torch.nn.Parameter, quantity: str, value: torch.Tensor) -> None:
        """The inverse of `tensors_of`, for a parameter that is as the model was saved."""
        value = value.to(parameter.device)
        if quantity == _TRAINED:
            self._averages[parameter] = parameter.detach().clone()
            parameter.copy_(value)
        elif quantity == TEACHER:
            self._teacher[parameter] = value
        else:
            self.state_of(parameter)[quantity] = value


def new_optimizer(model: GPT, settings: TrainingSettings, dtype: torch.dtype = torch.float32) -> Optimizers:
    """AdamW for everything, or Muon for the blocks' matrices and AdamW for the rest.

    AdamW (Loshchilov and Hutter, 2019) decays matrices only: biases and norms need none. `dtype` is the one that
    Muon may compute in.
    """
    parts = matrix_parts(model) if settings.optimizer == "muon" else {}
    others = [p for p in model.parameters() if p not in parts]
    adamw = torch.optim.AdamW(
        [
            {"params": [p for p in others if p.dim() >= 2], "weight_decay": settings.weight_decay},
            {"params": [p for p in others if p.dim() < 2], "weight_decay": 0.0},
        ],
        settings.learning_rate,
        betas=(settings.beta1, settings.beta2),
        fused=model.device.type != "mps",  # on Apple GPUs the fused kernel is far slower than the plain one
    )
    if not parts:
        return Optimizers(adamw, average=settings.weight_average)
    muon = Muon(parts, settings.matrix_learning_rate, settings.weight_decay, dtype)
    return Optimizers(adamw, muon, average=settings.weight_average)


def matrix_parts(model: GPT) -> dict[torch.Tensor, list[int]]:
    """The blocks' matrices, and the rows of the matrices that each is stacked from, since those are apart to Muon."""
    parts: dict[torch.Tensor, list[int]] = {}
    for module in model.h.modules():
        if isinstance(module, SelfAttention):
            parts[module.c_attn.weight] = [n * module.head_dim for n in module.heads]  # query, key, value
        elif isinstance(module, SwigluMLP):
            parts[module.c_fc.weight] = [module.c_fc.out_features // 2] * 2  # gate and value
        elif isinstance(module, torch.nn.Linear) and module.weight not in parts:
            parts[module.weight] = [module.out_features]
    return parts


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalized (Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024).

    The update of a matrix is its Nesterov momentum with all singular values brought near 1: every direction is
    learned at the same speed, the rare ones too. Unlike torch.optim.Muon, matrices of one shape go through the
    products together, stacked matrices are taken apart, and the products run in `dtype`: always bfloat16 would be
    many times slower on a CPU without instructions for it.

    Only those weights decay that the step makes smaller, so that decay never works against what is learned (Chen et
    al., "Cautious Weight Decay", 2025): where a text is read often, 0.007 nats better than decay of all (docs/LOG.md).
    """

    def __init__(
        self,
        parts: dict[torch.Tensor, list[int]],
        lr: float,
        weight_decay: float,
        dtype: torch.dtype,
        momentum: float = 0.95,
    ) -> None:
        super().__init__(list(parts), {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})
        self.parts = parts
        self.dtype = dtype

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One step; the `closure` of PyTorch's interface is not used."""
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            gradients = [p.grad for p in parameters]
            for p in parameters:
                if "momentum" not in self.state[p]:
                    self.state[p]["momentum"] = torch.zeros_like(p)
            momenta = [self.state[p]["momentum"] for p in parameters]
            torch._foreach_lerp_(momenta, gradients, 1 - group["momentum"])
            updates = torch._foreach_lerp(gradients, momenta, group["momentum"])  # Nesterov's look ahead
            # (rows, columns) -> [(part of a parameter, part of its update)]
            shapes: dict[torch.Size, list[tuple[torch.Tensor, torch.Tensor]]] = defaultdict(list)
            for parameter, update in zip(parameters, updates, strict=True):
                rows = self.parts[parameter]
                for part, change in zip(parameter.split(rows), update.split(rows), strict=True):
                    shapes[part.shape].append((part, change))
            for shape, pairs in shapes.items():
                directions = orthogonalize(torch.stack([change for _, change in pairs]), self.dtype)
                # A tall matrix gets longer steps, so that its outputs change as much as a wide one's.
                rate = group["lr"] * max(1.0, shape[0] / shape[1]) ** 0.5
                for (part, _), direction in zip(pairs, directions, strict=True):
                    # 1 where the step, which goes against its direction, makes the weight smaller, else 0: by
                    # arithmetic, as `torch.where` takes ten times as long on CPUs.
                    shrinks = (part * direction).sign_().clamp_(min=0)
                    part.addcmul_(part, shrinks, value=-group["lr"] * group["weight_decay"])
                    part.add_(direction, alpha=-rate)


def orthogonalize(matrices: torch.Tensor, dtype: torch.dtype, steps: int = 5) -> torch.Tensor:
    """Matrices (n, rows, columns) with their singular values brought near 1, in float32.

    Newton-Schulz iteration with the quintic of Jordan et al., whose coefficients trade exactness for speed: singular
    values end between about 0.7 and 1.2.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    tall = matrices.size(1) > matrices.size(2)
    x = (matrices.mT if tall else matrices).to(dtype).contiguous()  # products of transposed views are slow on CPUs
    x = x / (x.float().flatten(1).norm(dim=1) + 1e-7)[:, None, None].to(dtype)
    for _ in range(steps):
        gram = x @ x.mT
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, polynomial, x, beta=a)
    return (x.mT if tall else x).float()


def state_tensors(model: GPT, optimizer: Optimizers) -> dict[str, torch.Tensor]:
    """The optimizers' state, keyed `<parameter>/<quantity>`, such as `wte.weight/exp_avg`."""
    return {
        f"{name}/{quantity}": value
        for name, parameter in model.named_parameters()
        for quantity, value in optimizer.tensors_of(parameter).items()
    }


def state_shapes(model: GPT, optimizer: Optimizers, begun: bool = True, taught: bool = False) -> dict[str, Shape]:
    """The shapes of `state_tensors` in a generation that has `begun`, and is `taught` by one before it."""
    shapes: dict[str, Shape] = {}
    for name, parameter in model.named_parameters():
        quantities = optimizer.quantities(parameter) if begun else ()
        shapes |= {f"{name}/{quantity}": tuple(parameter.shape) for quantity in quantities}
        if "exp_avg" in quantities:
            shapes[f"{name}/step"] = ()
        if taught:
            shapes[f"{name}/{TEACHER}"] = tuple(parameter.shape)
    return shapes


def load_state_tensors(model: GPT, optimizer: Optimizers, tensors: dict[str, torch.Tensor]) -> None:
    """The inverse of `state_tensors`, for a model that has its saved weights already.

    Raises ValueError if the tensors do not belong to this model.
    """
    parameters = dict(model.named_parameters())
    for key, value in tensors.items():
        name, _, quantity = key.partition("/")
        if name not in parameters or (value.dim() and value.shape != parameters[name].shape):
            raise ValueError(f"The optimizer's saved {key} does not belong to this model.")
        optimizer.fill(parameters[name], quantity, value)
