"""How several processes divide rows, batches and matrices. Here without other processes."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

from groundling.config import Config, MachineSettings
from groundling.data.batches import Batch
from groundling.parallel.data_parallel import shared
from groundling.parallel.mesh import Mesh, data_size
from groundling.parallel.plan import check_processes, new_mesh, started_processes
from groundling.parallel.whole_matrices import owners
from groundling.training.out_of_memory import halved
from groundling.training.step import micro_batches


def ranks(n: int) -> list[Mesh]:
    return [Mesh(rank, n, data=n, data_rank=rank) for rank in range(n)]


def parts(batch: Batch, accumulate: int, mesh: Mesh | None) -> list[tuple[Batch, float]]:
    return list(micro_batches(batch, accumulate, lambda part: part.weight, 1, 2, lambda: False, mesh))


@pytest.mark.parametrize("accumulate", [1, 2])
def test_ranks_read_the_rows_of_each_micro_batch(accumulate: int) -> None:
    rows = torch.arange(12)[:, None]
    whole = parts(Batch(rows, rows), accumulate, None)
    divided = [parts(Batch(rows, rows), accumulate, mesh) for mesh in ranks(3)]
    for i, (micro_batch, _) in enumerate(whole):
        assert torch.equal(micro_batch.tokens, torch.cat([of_rank[i][0].tokens for of_rank in divided]))


def test_a_token_counts_the_same_on_all_ranks() -> None:
    """The mean over micro-batches and ranks of each one's mean loss times its share is the mean over all tokens."""
    weights, losses = torch.rand(12, 5), torch.rand(12, 5)
    batch = Batch(torch.arange(12)[:, None].expand(12, 5), torch.zeros(12, 5), weights)
    total = 0.0
    for mesh in ranks(3):
        for part, share in parts(batch, 2, mesh):
            assert part.weights is not None
            here = losses[part.tokens[:, 0], : part.weights.size(1)]
            total += float((here * part.weights).sum() / part.weights.sum()) * share / (2 * 3)
    assert total == pytest.approx(float((losses * weights).sum() / weights.sum()), rel=1e-6)


def test_dropout_differs_between_ranks_and_is_the_same_on_rank_0() -> None:
    batch = Batch(torch.zeros(12, 1), torch.zeros(12, 1))
    drawn = []
    for mesh in (None, *ranks(3)):
        parts(batch, 1, mesh)
        drawn.append(float(torch.rand(())))
    assert drawn[0] == drawn[1] and len(set(drawn)) == 3


@pytest.mark.parametrize("n", range(1, 9))
def test_ranks_get_equally_many_items_and_each_counts_once(n: int) -> None:
    found = [list(shared(range(n), mesh)) for mesh in ranks(3)]
    assert {len(items) for items in found} == {-(-n // 3)}
    assert sorted(item for items in found for item, counts in items if counts) == list(range(n))


def test_the_matrices_are_divided_evenly() -> None:
    shapes = [(96, 32), (32, 32), (128, 32), (32, 128)] * 6
    owned = owners(shapes, 4)
    assert sorted(i for each in owned for i in each) == list(range(24))
    work = [sum(shapes[i][0] * shapes[i][1] * 32 for i in each) for each in owned]
    assert max(work) <= 1.1 * sum(work) / 4
    assert [len(each) for each in owners(shapes[:2], 4)] == [1, 1, 0, 0]


def test_a_micro_batch_keeps_a_row_for_each_rank() -> None:
    training = Config.build("", "nano", batch_size=8, accumulate=1).training
    for least, sizes in ((1, [4, 2, 1]), (2, [4, 2]), (3, [4])):
        found, smaller = [], halved(training, least)
        while smaller is not None:
            found.append(smaller.batch_size)
            smaller = halved(smaller, least)
        assert found == sizes


REFUSED: list[tuple[dict[str, Any], int, str]] = [
    ({"batch_size": 1}, 2, "--batch-size 1 is too small for 2 processes that each read some of its rows. Use --batch-"),
    ({"parallel": "fsdp", "generations": 2}, 2, "--parallel fsdp does not work with --generations. Use --parallel ddp"),
    ({"tensor_parallel": 4}, 2, "2 process(es) cannot be divided by --tensor-parallel 4 × --pipeline-parallel 1 ×"),
]


@pytest.mark.parametrize(("settings", "size", "sentence"), REFUSED, ids=lambda value: str(value)[:30])
def test_what_does_not_fit_is_refused(settings: dict[str, Any], size: int, sentence: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}"):
        check_processes(Config.build("", "nano", **settings), size)


def test_an_adapter_is_not_sharded() -> None:
    config = Config.tuning("sft", "", Config.build("", "nano"), "x", adapter=2, parallel="fsdp")
    with pytest.raises(ValueError, match=r"^--parallel fsdp does not work with --adapter"):
        check_processes(config, 2)
    check_processes(config, 1)


def test_the_product_of_all_ways_is_the_number_of_processes() -> None:
    settings = MachineSettings(tensor_parallel=2, pipeline_parallel=2, context_parallel=1)
    assert [data_size(settings, n) for n in (4, 8, 12)] == [1, 2, 3]


@pytest.mark.parametrize(("memory", "mode"), [(17, "ddp"), (15, "fsdp")])
def test_a_model_that_would_fill_half_of_the_memory_is_sharded(
    memory: int, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights, gradients and two moments take 16 bytes a parameter."""
    config = Config.build("", "nano", n_layer=1, n_head=2, n_embd=16, block_size=8, norm="rmsnorm", position="rope")
    parameters = sum(p.numel() for p in _matrices(config))
    monkeypatch.setattr("groundling.parallel.plan._memory", lambda device: 2 * memory * parameters)
    chosen = list[str]()
    monkeypatch.setattr(Mesh, "build", lambda settings, device, mode: chosen.append(mode))
    new_mesh(config, 11, torch.device("cpu"))
    assert chosen == [mode]


def _matrices(config: Config) -> list[torch.Tensor]:
    from groundling.model.gpt import GPT

    return [p for p in GPT(config.model, 11).parameters() if p.dim() > 1]


def test_the_number_of_processes_is_the_one_that_was_started(monkeypatch: pytest.MonkeyPatch) -> None:
    assert started_processes({"steps": 3}) == {"steps": 3}
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert started_processes({"steps": 3}) == {"steps": 3, "processes": 4}
    with pytest.raises(ValueError, match=r"^--processes 2: this is one of 4 process"):
        started_processes({"processes": 2})
