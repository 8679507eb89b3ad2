"""Whatever a file holds, reading it gives a value or a ValueError of one short sentence, in bounded time and memory."""

from __future__ import annotations

import copy
import json
import os
import struct
import time
import tracemalloc
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import harness
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from groundling.config import MachineSettings, ModelSettings, TrainingSettings
from groundling.machine import choose
from groundling.model.describe import inference_memory, weight_shapes
from groundling.model.initial import InitialModel
from groundling.training.checkpoints import Checkpoints
from groundling.training.learner import Learner
from groundling.training.state import TrainState
from idle_task import IdleTask

HERE = Path(__file__).parent
SEEDS = {path.name: path.read_bytes() for path in sorted((HERE / "corpus").iterdir())}
CRASHERS = {path.name: path.read_bytes() for path in sorted((HERE / "crashers").iterdir())}
EXAMPLES = int(os.environ.get("GROUNDLING_FUZZ_EXAMPLES", "0"))  # 20,000 were run for docs/LOG.md


def tries(few: int) -> settings:
    slack = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large]
    return settings(max_examples=EXAMPLES or few, deadline=None, suppress_health_check=slack)


@pytest.mark.parametrize("name", [*SEEDS, *CRASHERS])
def test_what_a_fuzzer_found_once_is_answered(name: str) -> None:
    harness.one_input({**SEEDS, **CRASHERS}[name])


@pytest.mark.parametrize("name", SEEDS)
def test_the_seeds_are_sound(name: str) -> None:
    content = SEEDS[name]
    harness.READERS[content[0]](content[1:])


scalars = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
    | st.sampled_from([-1, 0, 2**31, 2**63, 2**64, 10**400, 1e308, "..", "/etc/passwd", "\0", "\ud800", "a" * 5000])
)  # fmt: skip
names = st.text(max_size=8)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3), max_leaves=6
)
READ = {"config": harness.config, "tokenizer-char": harness.tokenizer, "tokenizer-bpe": harness.tokenizer,
        "tokenizer-huggingface": harness.tokenizer, "state": harness.state, "result": harness.result,
        "history": harness.history, "header": harness.header, "shard": harness.shard,
        "sharding": harness.sharding}  # fmt: skip
BY_LINES = ("history", "shard", "sharding")


def places(value: Any) -> list[tuple[Any, Any]]:
    """Every container in some JSON with each of its keys."""
    found, level = [], [value]
    while level:
        node = level.pop()
        keys = list(node) if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else []
        for key in keys:
            found.append((node, key))
            level.append(node[key])
    return found


def answered(read: Callable[[bytes], None], content: bytes) -> None:
    """Read it: a ValueError of one sentence at most, and in seconds."""
    began = time.perf_counter()
    try:
        read(content)
    except (ValueError, FileNotFoundError) as error:
        if not 0 < len(str(error)) < 2000:
            raise AssertionError("an error must be a sentence") from error
    assert time.perf_counter() - began < 5


@tries(400)
@given(st.sampled_from(sorted(READ)), st.data())
def test_one_or_two_changes_of_what_is_sound(name: str, data: st.DataObject) -> None:
    head, _, rest = SEEDS[name][1:].partition(b"\n") if name in BY_LINES else (SEEDS[name][1:], b"", b"")
    value = json.loads(head)
    for _ in range(data.draw(st.integers(1, 2))):
        node, key = data.draw(st.sampled_from(places(value) or [([None], 0)]))
        kind = data.draw(st.sampled_from(["replace", "remove", "add"]))
        if kind == "remove" and isinstance(node, dict):
            node.pop(key, None)
        elif kind == "add" and isinstance(node, dict):
            node[data.draw(st.text(max_size=8))] = data.draw(values)
        else:
            node[key] = copy.deepcopy(data.draw(values))
    answered(READ[name], json.dumps(value).encode() + (b"\n" + rest if name in BY_LINES else b""))


@tries(300)
@given(st.sampled_from(harness.READERS), values.map(lambda value: json.dumps(value).encode()) | st.binary(max_size=200))
@example(harness.config, b'{"format": 1, "format": 1}')
@example(harness.tokenizer, b"[" * 100_000)
@example(harness.state, b'{"step": ' + b"9" * 5000 + b"}")
@example(harness.config, b'{"a":' * 500 + b"1" + b"}" * 500)
@example(harness.pointer, b'{"checkpoint": "\\ud800"}')
@example(harness.weights, struct.pack("<Q", 2**63))
@example(harness.header, b'{"a": "' + b"a" * 5000 + b'"}')  # was told in full
def test_any_json_and_any_bytes(read: Callable[[bytes], None], content: bytes) -> None:
    answered(read, content)


@pytest.mark.parametrize("read", [harness.state, harness.pointer, harness.result, harness.manifest])
def test_a_large_file_is_not_parsed(read: Callable[[bytes], None]) -> None:
    content = b"[" + b"[]," * (3 * 2**20) + b"[]]"  # 9 MB, and half a gigabyte if it were
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="is larger than") if read is not harness.pointer else nullcontext():
            read(content)
        assert tracemalloc.get_traced_memory()[1] < 20e6
    finally:
        tracemalloc.stop()


shapes = st.builds(
    ModelSettings,
    block_size=st.integers(1, 9), n_layer=st.integers(1, 2), n_head=st.just(2), n_kv_head=st.sampled_from([0, 1, 2]),
    n_embd=st.sampled_from([4, 8, 12]), norm=st.sampled_from(["layernorm", "rmsnorm"]),
    position=st.sampled_from(["learned", "rope"]), mlp=st.sampled_from(["gelu", "swiglu"]), tie_head=st.booleans(),
)  # fmt: skip


@tries(20)
@given(
    shapes, st.integers(1, 40), st.sampled_from(["adamw", "muon"]), st.integers(0, 2), st.integers(0, 2**31), st.data()
)
def test_a_checkpoint_comes_back_as_it_was(
    tmp_path_factory: pytest.TempPathFactory, model: ModelSettings, vocab_size: int, optimizer: str, steps: int,
    seed: int, data: st.DataObject,
) -> None:  # fmt: skip
    folder = tmp_path_factory.mktemp("run")
    for name in ("config.json", "tokenizer.json"):
        (folder / name).write_text("{}")
    training = TrainingSettings(optimizer=optimizer)  # type: ignore[arg-type]

    def fresh() -> Learner:
        machine = choose(MachineSettings(device="cpu", dtype="float32"))
        return Learner(InitialModel(model, vocab_size, seed), IdleTask(), training, machine)

    learner = fresh()
    gpt = learner.model
    assert {name: tuple(tensor.shape) for name, tensor in gpt.state_dict().items()} == weight_shapes(model, vocab_size)
    numbers = sum(tensor.numel() for tensor in [*gpt.parameters(), *gpt.buffers()])
    assert inference_memory(model, vocab_size) >= 4 * numbers
    for _ in range(steps):
        gpt(torch.randint(vocab_size, (2, model.block_size))).logsumexp(-1).sum().backward()
        learner.apply(0)
    state = data.draw(st.builds(
        TrainState, step=st.integers(0, 10**6), tokens=st.integers(0, 2**62), elapsed=st.floats(0, 1e12),
        best_score=st.none() | st.floats(0, 100), loss_sum=st.floats(0, 1e9),
    ))  # fmt: skip
    path = Checkpoints(folder / "checkpoints").save(learner.snapshot(state), 2)
    other = fresh()
    assert other.load(path) == state
    old, new = learner.optimizer.state_dict(), other.optimizer.state_dict()
    assert old.keys() == new.keys()
    old, new = old | gpt.state_dict(), new | other.model.state_dict()
    assert all(torch.equal(old[name], new[name]) for name in old)
