"""What a large run would cost: the arithmetic is PyTorch's where PyTorch can count, and a hand's where it cannot."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch._subclasses import FakeTensorMode

from groundling.config import PRESETS
from groundling.model import attention
from groundling.model.describe import flops_per_token
from groundling.model.gpt import GPT
from groundling.planning.devices import DEVICES
from groundling.planning.scaling import (
    Job,
    Layout,
    activation_bytes,
    best,
    divisible,
    estimate,
    layouts,
    memory,
    state_bytes,
)

XL = Job(PRESETS["gpt2-xl"].model, 50_257, 512)
H100 = DEVICES["h100"]
ALONE = Layout("ddp", 1, 1, 1, 1, 8, False)


def kept_bytes(model: GPT) -> int:
    """Bytes of all tensors that PyTorch keeps for the backward pass, of four windows, without the weights."""
    weights = {x.untyped_storage()._cdata for x in (*model.parameters(), *model.buffers())}
    kept: dict[int, int] = {}

    def keep(x: torch.Tensor) -> torch.Tensor:
        storage = x.untyped_storage()
        if storage._cdata not in weights:
            kept[storage._cdata] = storage.nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x), torch.autocast("cpu", dtype=torch.bfloat16):
        stream = model.hidden(torch.zeros(4, model.config.block_size, dtype=torch.int64))
    assert stream.requires_grad
    return sum(kept.values())


@pytest.mark.parametrize("preset", ["workshop", "laptop", "gpt2"])
def test_activations_are_those_that_pytorch_keeps(preset: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "_MAX_CHUNKED", 0)  # fused attention, as on a GPU
    settings = dataclasses.replace(PRESETS[preset].model, dropout=0.0)
    with FakeTensorMode():
        one, two = (kept_bytes(GPT(dataclasses.replace(settings, n_layer=n), 65)) for n in (1, 2))
    block = sum(p.numel() for p in GPT(dataclasses.replace(settings, n_layer=1), 65).h.parameters() if p.dim() > 1)
    measured = (two - one - 2 * block) / (4 * settings.block_size)  # without the weights in bfloat16
    predicted = activation_bytes(settings)
    if settings.norm == "rmsnorm":  # a GPU's kernel keeps what it reads, a CPU also keeps the result
        predicted += 8 * settings.n_embd + 4 * (settings.n_head + settings.kv_heads) * settings.head_dim
    assert measured == pytest.approx(predicted, rel=0.04)


def test_sixteen_bytes_for_each_weight() -> None:
    model = PRESETS["workshop"].model
    assert state_bytes(Job(model, 65, 1)) == 16 * sum(p.numel() for p in GPT(model, 65).parameters())


def test_a_step_on_one_device_is_operations_over_speed() -> None:
    found = estimate(XL, ALONE, H100)
    products = flops_per_token(XL.model, 50_257) * 512 * 1024 / (989e12 / 2)
    launches = 64 * 48 * 1e-4
    update = 7 * state_bytes(XL) / 4 / 3350e9
    assert found.seconds == pytest.approx(products + launches + update)
    assert found.waiting == 0
    assert found.tokens_per_second == pytest.approx(512 * 1024 / found.seconds)


def test_recomputing_trades_time_for_memory() -> None:
    again = dataclasses.replace(ALONE, recompute=True)
    saved = memory(XL, ALONE, H100) - memory(XL, again, H100)
    tokens, kept = 8 * 1024, activation_bytes(XL.model)
    assert saved == 48 * kept * tokens - (48 * 4 * 1600 * tokens + kept * tokens)
    slower = estimate(XL, again, H100).seconds - estimate(XL, ALONE, H100).seconds
    assert slower == pytest.approx(flops_per_token(XL.model, 0) / 3 * 512 * 1024 / (989e12 / 2))


def test_shards_take_less_memory_than_copies() -> None:
    ddp = dataclasses.replace(ALONE, data=8)
    fsdp = dataclasses.replace(ddp, kind="fsdp")
    state = state_bytes(XL)
    assert memory(XL, ddp, H100) == memory(XL, ALONE, H100)
    assert memory(XL, ddp, H100) - memory(XL, fsdp, H100) == pytest.approx(7 / 8 * state, rel=0.15)


def test_gradients_take_as_long_as_their_link() -> None:
    """With links this slow, nothing else counts: seven eighths of all gradients, twice."""
    slow = dataclasses.replace(H100, link=1.0)
    found = estimate(XL, dataclasses.replace(ALONE, data=8), slow)
    gradients = state_bytes(XL) / 4
    assert found.seconds == pytest.approx(2 * 7 / 8 * gradients / 0.7e9, rel=0.01)


def test_a_pipeline_waits_for_its_ends() -> None:
    """With p stages and m micro-batches, a share of (p - 1) / m more."""
    found = estimate(XL, dataclasses.replace(ALONE, pipeline=4), H100)
    assert found.waiting / (found.seconds - found.waiting) == pytest.approx(3 / 64, rel=0.1)


@pytest.mark.parametrize("devices", [1, 8, 64])
def test_layouts_use_all_devices_and_divide_the_model(devices: int) -> None:
    job = divisible(dataclasses.replace(XL, windows=480), devices)
    assert job.windows % devices == 0 and 480 <= job.windows < 480 + devices
    found = list(layouts(job, devices, H100))
    assert found and all(each.devices == devices for each in found)
    for each in found:
        assert job.windows % (each.data * each.micro_batch) == 48 % each.pipeline == 25 % each.tensor == 0


def test_the_best_fit_and_come_first() -> None:
    found = best(XL, 8, H100)
    assert [each.seconds for each in found] == sorted(each.seconds for each in found)
    assert all(each.memory < 80e9 for each in found)
    assert not best(XL, 1, DEVICES["rtx4090"])  # the optimizer's state alone takes 25 GB
    assert all(each.layout.kind == "fsdp" or each.layout.pipeline > 1 for each in best(XL, 8, DEVICES["rtx4090"]))
