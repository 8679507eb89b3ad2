"""Steps with optimizer state in 8 bits on shards and on one process, with the same gradients.

Started by torchrun, see test_8bit_shards.py. Each rank also makes the steps of one process.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from groundling.config import MachineSettings, ModelSettings, TrainingSettings
from groundling.model.gpt import GPT
from groundling.parallel import processes
from groundling.parallel.data_parallel import DataParallel
from groundling.parallel.divide import divided
from groundling.parallel.mesh import Mesh
from groundling.parallel.shards import gathered, row_orders
from groundling.parallel.whole import own_part
from groundling.training.optimizer import Optimizers, new_optimizer

_MODEL = ModelSettings(block_size=8, n_layer=1, n_head=2, n_embd=512)
_VOCABULARY = 65  # rows that two ranks cannot share evenly


def made(settings: TrainingSettings, mesh: Mesh) -> tuple[GPT, Optimizers]:
    torch.manual_seed(0)
    model = divided(GPT(_MODEL, _VOCABULARY), mesh)
    DataParallel(model, mesh)
    return model, new_optimizer(model, settings, mesh=mesh)


def steps(model: GPT, optimizer: Optimizers, seeds: range) -> None:
    orders = row_orders(model)
    for seed in seeds:
        random = torch.Generator().manual_seed(seed)
        for name, parameter in model.named_parameters():
            gradient = torch.randn(parameter.shape, generator=random)
            parameter.grad = own_part(gradient, parameter, orders.get(name))
        optimizer.step()


def wholes(model: GPT, optimizer: Optimizers, mesh: Mesh) -> dict[str, torch.Tensor]:
    tensors = {**dict(model.named_parameters()), **optimizer.state_dict()}
    return {name: x.clone() for name, x in gathered(tensors, row_orders(model), mesh).items()}


def differing(way: str) -> list[str]:
    """What differs in three steps of which the second is made on two processes, and the last with what was saved."""
    settings, one = TrainingSettings(optimizer="muon", optimizer_bits=8), Mesh.single()
    machine = MachineSettings(processes=2, tensor_parallel=2 if way == "tensor" else 1)
    mesh = Mesh.build(machine, torch.device("cpu"), "fsdp" if way == "fsdp" else "ddp")
    model, optimizer = made(settings, one)
    steps(model, optimizer, range(1))
    saved = {name: x.clone() for name, x in optimizer.state_dict().items()}
    several, its = made(settings, mesh)
    steps(several, its, range(1))
    its.load_state_dict(saved)
    steps(several, its, range(1, 2))
    steps(model, optimizer, range(1, 2))
    found = wholes(several, its, mesh)
    if not processes.is_main():
        return []
    expected = wholes(model, optimizer, one)
    model.load_state_dict({name: found[name] for name in model.state_dict()})
    optimizer.load_state_dict({name: found[name].clone() for name in optimizer.state_dict()})
    steps(model, optimizer, range(2, 3))
    twin, other = made(settings, one)
    steps(twin, other, range(3))
    assert any(x.dtype == torch.uint8 for x in expected.values()) and found.keys() == expected.keys()
    pairs = {f"saved {name}": (x, found[name]) for name, x in expected.items()}
    pairs |= {name: (x, twin.get_parameter(name)) for name, x in model.named_parameters()}
    return [name for name, (x, y) in pairs.items() if not torch.equal(x, y)]


if __name__ == "__main__":
    torch.set_num_threads(1)
    with processes.joined():
        results = {way: differing(way) for way in ("fsdp", "tensor")}
        if processes.is_main():
            Path(sys.argv[1]).write_text(json.dumps(results))
