"""AdamW and Muon: parameter groups, learning rates, and the optimizers' state as named tensors."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from groundling.config import TrainingSettings
from groundling.model.adapter import Adapter
from groundling.model.describe import Shape, block_columns
from groundling.model.gpt import GPT, StackedLinear
from groundling.parallel.mesh import Mesh
from groundling.parallel.shards import local, row_orders
from groundling.parallel.whole import own_part
from groundling.parallel.whole_matrices import Rows, WholeMatrices
from groundling.training.optimizer_8bit import AdamW8bit, codes_and_scales, dequantize, shapes_of, store

_MOMENTUM = 0.95  # of Muon


class Optimizers:
    """Several PyTorch optimizers for the parameters of `model`, used as one.

    State tensors are named `<parameter>/<quantity>`, such as `wte.weight/exp_avg`. In 8 bits, there are two of each,
    `wte.weight/exp_avg_code` and `wte.weight/exp_avg_scale`: see optimizer_8bit.py.
    """

    def __init__(self, model: GPT | Adapter, *optimizers: torch.optim.Optimizer) -> None:
        self.optimizers = optimizers
        self._parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self._orders = row_orders(model)
        self._owners = {p: o for o in optimizers for group in o.param_groups for p in group["params"]}
        for group in self.groups:
            group["peak"] = group["lr"]

    @property
    def groups(self) -> list[dict[str, Any]]:
        return [group for optimizer in self.optimizers for group in optimizer.param_groups]

    def schedule(self, factor: float) -> None:
        """Set every learning rate to `factor` times its peak."""
        for group in self.groups:
            group["lr"] = factor * group["peak"]

    def step(self, found_inf: torch.Tensor | None = None) -> None:
        """One optimizer step. If `found_inf`, a scalar on the device, is 1, it changes neither weights nor state. The
        CPU does not wait for the device to find out."""
        for optimizer in self.optimizers:
            optimizer.found_inf = found_inf  # type: ignore[attr-defined]  # the name that the fused AdamW looks for
            optimizer.step()

    def forget(self) -> None:
        """Reset to the state before the first step."""
        for optimizer in self.optimizers:
            optimizer.state.clear()

    def state_of(self, parameter: torch.Tensor) -> dict[str, Any]:
        """The state of `parameter`, to read or to write."""
        state: dict[str, Any] = self._owners[parameter].state[parameter]
        return state

    def state_dict(self) -> dict[str, torch.Tensor]:
        """The state of all optimizers. Empty before the first step."""
        return {f"{name}/{key}": x for name, p in self._parameters.items() for key, x in self.state_of(p).items()}

    def state_shapes(self) -> dict[str, Shape]:
        """The shapes of `state_dict()` after the first step."""
        shapes = dict[str, Shape]()
        for name, parameter in self._parameters.items():
            owner, shape = self._owners[parameter], tuple(parameter.shape)
            for quantity in ("momentum",) if isinstance(owner, Muon) else ("exp_avg", "exp_avg_sq"):
                is_8bit = isinstance(owner, AdamW8bit) or (isinstance(owner, Muon) and owner.is_8bit(parameter))
                key = f"{name}/{quantity}"
                shapes |= shapes_of(key, shape) if is_8bit else {key: shape}
            if not isinstance(owner, Muon):
                shapes[f"{name}/step"] = ()
        return shapes

    def load_state_dict(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """The inverse of `state_dict`. Raises ValueError if a tensor does not belong to these parameters."""
        self.forget()
        shapes = self.state_shapes()
        for key, value in tensors.items():
            if shapes.get(key) != tuple(value.shape):
                raise ValueError(f"The optimizer's saved {key} does not belong to this model.")
            name, _, quantity = key.partition("/")
            parameter = self._parameters[name]
            part = own_part(value, parameter, self._orders.get(name)) if value.dim() else value.to(parameter.device)
            self.state_of(parameter)[quantity] = part


def new_optimizer(
    model: GPT | Adapter, settings: TrainingSettings, dtype: torch.dtype = torch.float32, mesh: Mesh | None = None
) -> Optimizers:
    """AdamW for everything, or Muon for the matrices of the blocks and AdamW for the rest.

    AdamW (Loshchilov and Hutter, 2019) decays matrices only: biases and norms need no decay. Nor do the factors of an
    adapter, which AdamW trains: without them the model is what it was, and not zero. `dtype` is what Muon computes in.
    """
    matrices = block_matrices(model) if settings.optimizer == "muon" and isinstance(model, GPT) else {}
    decay = settings.weight_decay if isinstance(model, GPT) else 0.0
    others = [p for p in model.parameters() if p.requires_grad and p not in matrices]
    in_8_bits = {p: settings.optimizer_bits == 8 and block_columns(tuple(p.shape)) > 0 for p in others}
    large, small = [p for p in others if in_8_bits[p]], [p for p in others if not in_8_bits[p]]
    betas = (settings.beta1, settings.beta2)
    adamw = torch.optim.AdamW(
        [
            {"params": [p for p in small if p.dim() >= 2], "weight_decay": decay},
            {"params": [p for p in small if p.dim() < 2], "weight_decay": 0.0},
        ],
        settings.learning_rate,
        betas=betas,
        fused=next(model.parameters()).device.type != "mps",  # on Apple GPUs, the fused kernel is far slower
    )
    optimizers: list[torch.optim.Optimizer] = [adamw]
    if large:
        optimizers.append(AdamW8bit(large, settings.learning_rate, betas, decay))
    if matrices:
        rates = (settings.matrix_learning_rate, settings.weight_decay)
        optimizers.append(Muon(matrices, *rates, dtype, mesh, settings.optimizer_bits))
    return Optimizers(model, *optimizers)


def block_matrices(model: GPT) -> dict[torch.Tensor, Rows]:
    """The weight matrices of the blocks, each with the row counts of the matrices that it is stacked from. Muon updates
    those separately."""
    return {
        module.weight: Rows(module.sizes, module.order)
        if isinstance(module, StackedLinear)
        else Rows([module.out_features])
        for module in model.h.modules()
        if isinstance(module, torch.nn.Linear)
    }


class Muon(torch.optim.Optimizer):
    """Orthogonalized momentum (Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024).

    The update of a matrix is its Nesterov momentum with all singular values brought near 1, so that all directions are
    learned at the same speed. Unlike torch.optim.Muon, this one batches the products of matrices of the same shape,
    separates stacked matrices, and computes in `dtype`: bfloat16 would be many times slower on a CPU without
    instructions for it.

    Decay acts only on weights that the step makes smaller, so that it never opposes the gradient (Chen et al.,
    "Cautious Weight Decay", 2025). Over many epochs, that is 0.007 nats better than decaying all weights (docs/LOG.md).
    """

    found_inf: torch.Tensor | None = None
    """See `Optimizers.step`."""

    def __init__(
        self, matrices: Mapping[torch.Tensor, Rows], lr: float, weight_decay: float, dtype: torch.dtype,
        mesh: Mesh | None = None, bits: int = 32,
    ) -> None:  # fmt: skip
        super().__init__(list(matrices), {"lr": lr, "weight_decay": weight_decay})
        self.matrices, self.dtype, self.bits = matrices, dtype, bits
        self.whole = WholeMatrices(matrices, mesh or Mesh.single())

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One step. The `closure` of PyTorch's interface is not used."""
        (group,) = self.param_groups
        parameters = [p for p in group["params"] if p.grad is not None]
        large = [p for p in parameters if self.is_8bit(p)]
        small = [p for p in parameters if not self.is_8bit(p)]
        found = dict(zip(small, self._updates(small), strict=True)) | {p: self._update_8bit(p) for p in large}
        directions = self.whole.map(self._directions, parameters, [found[p] for p in parameters])
        for parameter, pieces in zip(parameters, directions, strict=True):
            self._move(parameter, pieces, group["lr"], group["weight_decay"])

    def is_8bit(self, parameter: torch.Tensor) -> bool:
        """Whether the momentum of a matrix is in 8 bits."""
        return self.bits == 8 and block_columns(tuple(parameter.shape)) > 0

    def _updates(self, parameters: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
        """Follow the gradients of matrices with their momenta. Returns the Nesterov momenta, of each the part here."""
        for p in parameters:
            if "momentum" not in self.state[p]:
                self.state[p]["momentum"] = torch.zeros_like(p)
        momenta = [local(self.state[p]["momentum"]) for p in parameters]
        gradients = [local(p.grad) for p in parameters if p.grad is not None]
        if self.found_inf is not None:  # in a step to skip, the momenta do not change
            skip = self.found_inf > 0
            gradients = [torch.where(skip, m, g) for m, g in zip(momenta, gradients, strict=True)]
        if not parameters:
            return []
        torch._foreach_lerp_(momenta, gradients, 1 - _MOMENTUM)
        return torch._foreach_lerp(gradients, momenta, _MOMENTUM)

    def _update_8bit(self, parameter: torch.Tensor) -> torch.Tensor:
        """As `_updates`, of a matrix whose momentum is in 8 bits."""
        assert parameter.grad is not None
        codes, scales = codes_and_scales(self.state[parameter], "momentum", parameter)
        skip, gradient = None if self.found_inf is None else self.found_inf > 0, local(parameter.grad)
        momentum = dequantize(codes, scales, signed=True)
        if skip is not None:
            gradient = torch.where(skip, momentum, gradient)
        momentum.lerp_(gradient, 1 - _MOMENTUM)
        store(momentum, codes, scales, True, skip)
        return gradient.lerp(momentum, _MOMENTUM)

    def _directions(self, parameters: Sequence[torch.Tensor], updates: list[torch.Tensor]) -> list[list[torch.Tensor]]:
        """The directions in which to move the matrices that are stacked in each parameter."""
        stacks = [u.split(list(self.matrices[p].counts)) for p, u in zip(parameters, updates, strict=True)]
        places: dict[torch.Size, list[tuple[int, int]]] = defaultdict(list)  # of all matrices of a shape
        for i, stack in enumerate(stacks):
            for k, matrix in enumerate(stack):
                places[matrix.shape].append((i, k))
        found = [list(stack) for stack in stacks]
        for here in places.values():
            directions = orthogonalize(torch.stack([stacks[i][k] for i, k in here]), self.dtype)
            for (i, k), direction in zip(here, directions, strict=True):
                found[i][k] = direction
        return found

    def _move(self, parameter: torch.Tensor, directions: Sequence[torch.Tensor], lr: float, decay: float) -> None:
        """Decay the matrices that are stacked in a parameter, and move each in its direction: of all, the part here."""
        parts = local(parameter).split(self.whole.rows_here(parameter))
        for n, part, direction in zip(self.matrices[parameter].counts, parts, directions, strict=True):
            if self.found_inf is not None:
                direction = direction * (1 - self.found_inf)  # a step of length 0, without decay
            # Tall matrices get longer steps, so that their outputs change as much as those of wide ones.
            rate = lr * max(1.0, n / parameter.size(1)) ** 0.5
            # 1 where the step, which is minus this direction, makes the weight smaller, else 0. By arithmetic, since
            # `torch.where` takes ten times as long on CPUs.
            shrinks = (part * direction).sign_().clamp_(min=0)
            part.addcmul_(part, shrinks, value=-lr * decay)
            part.add_(direction, alpha=-rate)


def orthogonalize(matrices: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Matrices (n, rows, columns) with their singular values brought near 1, in float32.

    Newton-Schulz iteration with the quintic of Jordan et al., whose coefficients trade exactness for speed: singular
    values end between about 0.7 and 1.2.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    tall = matrices.size(1) > matrices.size(2)
    x = (matrices.mT if tall else matrices).to(dtype).contiguous()  # products of transposed views are slow on CPUs
    x = x / (x.float().flatten(1).norm(dim=1) + 1e-7)[:, None, None].to(dtype)
    for _ in range(5):
        gram = x @ x.mT
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, polynomial, x, beta=a)
    return (x.mT if tall else x).float()
