"""Parameter groups and the optimizer; its state as named tensors, for open files."""

from __future__ import annotations

import torch

from groundling.config import TrainingSettings
from groundling.model.gpt import GPT


def new_optimizer(model: GPT, settings: TrainingSettings) -> torch.optim.Optimizer:
    """AdamW (Loshchilov and Hutter, 2019), with decay on matrices only: biases and norms need none."""
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    vectors = [p for p in model.parameters() if p.dim() < 2]
    groups = [
        {"params": matrices, "weight_decay": settings.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    # On Apple GPUs the fused kernel is far slower than the plain one.
    fused = model.device.type != "mps"
    return torch.optim.AdamW(groups, settings.learning_rate, betas=(settings.beta1, settings.beta2), fused=fused)


def state_tensors(model: GPT, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """The optimizer's state, keyed `<parameter>/<quantity>`, such as `wte.weight/exp_avg`."""
    return {
        f"{name}/{quantity}": value
        for name, parameter in model.named_parameters()
        for quantity, value in optimizer.state[parameter].items()
    }


def load_state_tensors(model: GPT, optimizer: torch.optim.Optimizer, tensors: dict[str, torch.Tensor]) -> None:
    """The inverse of `state_tensors`. Raises ValueError if the tensors do not belong to this model."""
    parameters = dict(model.named_parameters())
    for key, value in tensors.items():
        name, _, quantity = key.partition("/")
        if name not in parameters or (value.dim() and value.shape != parameters[name].shape):
            raise ValueError(f"The optimizer's saved {key} does not belong to this model.")
        optimizer.state[parameters[name]][quantity] = value.to(parameters[name].device)
