"""What training does on a GPU, without one: tensors that have a device but no data go through a step.

Python must never wait for the GPU in a step, and no operation may mix devices. PyTorch refuses to read a number of a
tensor without data, and every copy between devices is looked at.
"""

from __future__ import annotations

import ctypes
import dataclasses
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch._subclasses import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from groundling.config import PRESETS
from groundling.data.batches import Batch, WindowSampler
from groundling.machine import Machine
from groundling.model.gpt import GPT
from groundling.training.average import WeightAverage
from groundling.training.optimizer import new_optimizer
from idle_task import IdleTask

GPU = torch.device("cuda:0")
V, T = 65, 32
# PyTorch for CPUs knows the type of a GPU, but not how to make it the current device.
GUARD = """
#include <c10/core/impl/DeviceGuardImplInterface.h>
namespace { C10_REGISTER_GUARD_IMPL(CUDA, c10::impl::NoOpDeviceGuardImpl<c10::DeviceType::CUDA>) }
"""


class Tokens:
    """As a corpus has them."""

    def __len__(self) -> int:
        return 5000

    def windows(self, offsets: Any, length: int) -> Any:
        return np.zeros((len(offsets), length), dtype=np.int64)


class Copies(TorchDispatchMode):
    """Remembers the operations on tensors of two devices, other than numbers on the CPU, and counts all."""

    def __init__(self) -> None:
        super().__init__()
        self.between: list[tuple[str, bool]] = []
        self.count = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = function(*args, **kwargs)
        self.count += function.name() != "prim::device"
        leaves = torch.utils._pytree.tree_leaves((args, kwargs, result))
        devices = {x.device.type for x in leaves if isinstance(x, torch.Tensor) and x.dim()}
        if len(devices) > 1:
            self.between.append((function.name(), bool(kwargs.get("non_blocking"))))
        return result


@pytest.fixture(scope="module")
def guard(tmp_path_factory: pytest.TempPathFactory) -> None:
    if torch.version.cuda:
        return
    folder, torch_folder = tmp_path_factory.mktemp("guard"), Path(torch.__file__).parent
    (folder / "guard.cpp").write_text(GUARD)
    command = ["g++", "-std=c++20", "-shared", "-fPIC", f"-I{torch_folder / 'include'}", "guard.cpp", "-o", "guard.so",
               f"-L{torch_folder / 'lib'}", "-lc10"]  # fmt: skip
    try:
        subprocess.run(command, cwd=folder, check=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("needs g++")
    ctypes.CDLL(str(folder / "guard.so"))


@pytest.fixture
def gpu(guard: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[FakeTensorMode, Copies]]:
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: self)
    monkeypatch.setattr("torch.cuda.amp.common.amp_definitely_not_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_: True)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode, Copies() as copies:
        yield mode, copies


def model_on_gpu(mode: FakeTensorMode, preset: str) -> GPT:
    settings = dataclasses.replace(PRESETS[preset].model, n_layer=2, block_size=T, dropout=0.1)
    with torch.device("meta"):
        model = GPT(settings, V)
    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            for name, tensor in tensors.items():
                if tensor is not None:
                    fake = FakeTensor(mode, tensor.detach(), GPU)
                    tensors[name] = torch.nn.Parameter(fake) if tensors is module._parameters else fake
    return model.train()


@pytest.mark.parametrize("preset", ["nano", "laptop"])
@pytest.mark.parametrize("resident", [False, True])
def test_a_step_never_waits_for_the_gpu(gpu: tuple[FakeTensorMode, Copies], preset: str, resident: bool) -> None:
    mode, copies = gpu
    machine, training = Machine(GPU, torch.bfloat16, "off", 1), PRESETS[preset].training
    model = model_on_gpu(mode, preset)
    optimizer, average = new_optimizer(model, training, machine.dtype), WeightAverage(model, 0.1)
    held = torch.empty(5000, dtype=torch.int32, device=GPU) if resident else None
    sampler = WindowSampler(Tokens(), T, 4, 1, held)  # type: ignore[arg-type]
    for step in range(2):
        batch = sampler(step).split(2)[0].to(GPU)
        with machine.autocast(), torch.no_grad():  # the gradients need PyTorch's own threads for a GPU
            loss = IdleTask().loss(model, batch).value
        for parameter in model.parameters():
            parameter.grad = torch.empty_like(parameter)
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        found_inf = 1 - (loss + norm).isfinite().float()
        optimizer.step(found_inf)
        average.update(step, 1 - found_inf)
        assert loss.device == norm.device == GPU
    assert copies.between, "the batch has to get there"
    assert all(not_waiting for _, not_waiting in copies.between), copies.between


def test_an_average_is_a_few_kernels(gpu: tuple[FakeTensorMode, Copies]) -> None:
    """A GPU that waits for Python between 26 short kernels is slower than one that runs three."""
    mode, copies = gpu
    model = model_on_gpu(mode, "nano")
    average, applied = WeightAverage(model, 0.1), torch.ones((), device=GPU)
    average.update(0, applied)
    before = copies.count
    average.update(1, applied)
    assert copies.count - before <= 6


def test_a_skipped_step_does_not_move_the_average() -> None:
    model = GPT(dataclasses.replace(PRESETS["nano"].model, n_layer=1, block_size=8, n_embd=8), 5)
    plain, known = WeightAverage(model, 0.1), WeightAverage(model, 0.1)
    for step in range(3):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.1
        plain.update(step)
        known.update(step, torch.tensor(1.0))
    kept = {name: value.clone() for name, value in known.weights().items()}
    for name, value in plain.weights().items():
        torch.testing.assert_close(kept[name], value)
    known.update(3, torch.tensor(0.0))
    assert all(torch.equal(kept[name], value) for name, value in known.weights().items())


def test_batches_for_a_gpu_are_pinned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only from pinned memory does a copy not wait. A slice has to be made contiguous first, or PyTorch copies it to
    ordinary memory on its way."""
    pinned, to = list[bool](), torch.Tensor.to
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda x: pinned.append(x.is_contiguous()) or x)
    monkeypatch.setattr(torch.Tensor, "to", lambda x, device, non_blocking=False: x if non_blocking else to(x, device))
    tokens = torch.zeros(2, 9, dtype=torch.int64)
    Batch(tokens[:, :-1], tokens[:, 1:]).to(GPU)
    assert pinned == [True, True]
    Batch(tokens[:, :-1], tokens[:, 1:]).to(torch.device("cpu"))
    assert len(pinned) == 2
