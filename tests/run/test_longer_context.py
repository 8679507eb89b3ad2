"""A longer context for a trained model, and the loss by position that shows what it is worth."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch

import groundling
from groundling.run.longer_context import resized_positions
from groundling.run.run import Run
from tiny import TINY

ROPE = {"norm": "rmsnorm", "position": "rope", "mlp": "swiglu"}
SHORT: dict[str, Any] = {"steps": 8, "eval_every": 8, "checkpoint_every": 8, "warmup_steps": 1, "sample_every": 0}


@pytest.fixture(scope="module")
def parents(tmp_path_factory: pytest.TempPathFactory, prose: str) -> Callable[[str], Run]:
    """A run with each kind of positions, trained when it is first asked for."""
    folder, runs = tmp_path_factory.mktemp("parents"), dict[str, Run]()
    (folder / "text.txt").write_text(prose[:40_000], encoding="utf-8")

    def parent(position: str) -> Run:
        if position not in runs:
            settings = TINY | SHORT | (ROPE if position == "rope" else {})
            runs[position] = groundling.train(
                folder / "text.txt", name=position, out=folder / "runs", on_event=lambda _: None, **settings
            )
        return runs[position]

    return parent


def trained_further(parent: Run, **settings: Any) -> tuple[Run, list[str]]:
    said = list[str]()
    run = groundling.train(
        parent.config.corpus, init_from=parent.folder, name=f"longer-{len(list(parent.folder.parent.iterdir()))}",
        out=parent.folder.parent, on_event=lambda event: said.append(getattr(event, "sentence", "")),
        device="cpu", dtype="float32", batch_size=4, **SHORT | {"steps": 2} | settings,
    )  # fmt: skip
    return run, said


def initial(run: Run) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(run.folder / "initial" / "model.safetensors")


def test_rope_reaches_farther_with_the_same_weights(parents: Callable[[str], Run]) -> None:
    parent = parents("rope")
    run, said = trained_further(parent, block_size=64, rope_scaling="yarn:2:32")
    assert (run.config.model.block_size, run.config.model.rope_scaling) == (64, "yarn:2:32")
    before, after = parent.model.state_dict(), initial(run)
    assert all(torch.equal(before[name], after[name]) for name in after)
    assert any("64 tokens instead of 32, with --rope-scaling yarn:2:32" in text for text in said)
    assert run.evaluate()["loss"] < parent.evaluate()["loss"] + 0.2
    with pytest.raises(ValueError, match=r"context of 64\. Add --rope-scaling yarn:4:32, so"):
        trained_further(run, block_size=128)


def test_rope_without_a_scaling_is_refused(parents: Callable[[str], Run]) -> None:
    with pytest.raises(ValueError, match=r"longer than this model's context of 32\. Add --rope-scaling yarn:4:32"):
        trained_further(parents("rope"), block_size=128)
    run, _ = trained_further(parents("rope"), block_size=16)
    assert run.config.model.block_size == 16


def test_learned_positions_are_interpolated(parents: Callable[[str], Run]) -> None:
    parent = parents("learned")
    run, said = trained_further(parent, block_size=63)
    before, after = parent.model.state_dict()["wpe.weight"], initial(run)["wpe.weight"]
    torch.testing.assert_close(after[::2], before)  # 63 = 2 · 32 - 1: every second one is an old one
    torch.testing.assert_close(after[1::2], (before[:-1] + before[1:]) / 2)
    assert any("63 tokens instead of 32: learned positions are interpolated." in text for text in said)
    assert torch.equal(resized_positions(before, 8), before[:8])
    with pytest.raises(ValueError, match="--rope-scaling linear:2 is for models with RoPE"):
        trained_further(parent, block_size=64, rope_scaling="linear:2")


def test_the_loss_by_position_adds_up_and_is_drawn(parents: Callable[[str], Run]) -> None:
    run = parents("rope")
    result = run.evaluate(by_position=True)
    groups = result["positions"]
    assert [(group["first"], group["last"]) for group in groups][:5] == [(1, 1), (2, 2), (3, 3), (4, 4), (5, 6)]
    assert (groups[-1]["first"], groups[-1]["last"]) == (24, 32)
    assert all(a["last"] + 1 == b["first"] for a, b in pairwise(groups))
    assert sum(group["tokens"] for group in groups) == result["tokens"]
    mean = sum(group["loss"] * group["tokens"] for group in groups) / result["tokens"]
    assert mean == pytest.approx(result["loss"], abs=1e-9)
    page = run.report().read_text(encoding="utf-8")
    assert "Loss by position" in page
    assert "Validation loss by the number of tokens before, at step 8." in page
    file = run.folder / "positions.json"
    assert json.loads(file.read_text())["step"] == run.step
    for damage in ("{", '{"step": 8, "losses": [{"first": 1}]}', '{"step": "8", "losses": []}'):
        file.write_text(damage)
        assert "Loss by position" not in run.report().read_text(encoding="utf-8")


def test_the_command_shows_it(parents: Callable[[str], Run], capsys: pytest.CaptureFixture[str]) -> None:
    from groundling.__main__ import main

    with pytest.raises(SystemExit, match="0"):
        main(["eval", str(parents("learned").folder), "--by-position"])
    assert "after 24 to 32 tokens" in capsys.readouterr().out
