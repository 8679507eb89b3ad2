"""The benchmarks run, and count right."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from groundling.__main__ import main
from groundling.config import PRESETS

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "throughput.py"


def test_a_variant_is_measured() -> None:
    variant = json.dumps({"kind": "groundling", "preset": "nano", "dtype": "float32", "compile": "off"})
    command = [sys.executable, str(SCRIPT), "--steps", "2", "--variant", variant]
    result = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert len(result["seconds"]) == 2
    assert min(result["seconds"]) > 0
    assert result["memory"] > 10**8


@pytest.mark.slow
def test_decoding_is_measured() -> None:
    script = SCRIPT.with_name("decode.py")
    command = [sys.executable, str(script), "--preset", "nano", "--batches", "1", "--rounds", "1", "--tokens", "9"]
    done = subprocess.run([*command, "--precisions", "float32"], check=True, capture_output=True, text=True)
    rates = {tuple(row.split(" | ")[1:3]): row.split(" | ")[4] for row in done.stdout.splitlines()[3:]}
    assert {("start", "groundling"), ("past", "groundling"), ("start", "transformers")} <= rates.keys()
    assert all(float(rate.replace(",", "")) > 0 for rate in rates.values())


def test_choices_never_see_what_claims_are_about(
    tmp_path: Path, prose: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The script and its commands run in this process."""
    module = runpy.run_path(str(SCRIPT.with_name("choices.py")))

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        assert command[:3] == [sys.executable, "-m", "groundling"]
        before = capsys.readouterr().out
        with pytest.raises(SystemExit) as end:
            main(command[3:])
        out = capsys.readouterr().out
        print(before, end="")
        return subprocess.CompletedProcess(command, int(end.value.code or 0), out)

    monkeypatch.setattr(subprocess, "run", run)
    (tmp_path / "text.txt").write_text(prose + "€" * 3_000, encoding="utf-8")  # cut off: no euro in what is trained on
    small = "--n-layer 1 --n-head 2 --n-embd 32 --block-size 32 --batch-size 4 --device cpu"
    words = ["choices.py", "--text", str(tmp_path / "text.txt"), small, "--steps", "20", "--seeds", "1", "2"]
    monkeypatch.setattr(sys, "argv", words)
    module["main"]()
    rows = [[cell.strip() for cell in row.split("|")[1:-1]] for row in capsys.readouterr().out.splitlines()]
    assert rows[0] == ["options", "seed 1", "seed 2", "mean"] and len(rows) == 3
    first, second, mean = map(float, rows[2][1:])
    assert 0 < first != second and mean == pytest.approx((first + second) / 2, abs=1e-4)
    assert "€" not in module["training_part"](tmp_path / "text.txt", tmp_path).read_text(encoding="utf-8")


@pytest.mark.slow
def test_fine_tuning_is_measured_beside_trl() -> None:
    pytest.importorskip("trl")
    command = [sys.executable, str(SCRIPT.with_name("sft.py")), "--steps", "8", "--rounds", "1", "--batch-size", "4"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    rows = [row.split(" | ") for row in done.stdout.splitlines()[2:]]
    assert [row[0] for row in rows] == ["| groundling", "| TRL"] * 2
    assert all(float(row[2]) > 0 for row in rows)


def test_rollouts_and_engine_are_measured() -> None:
    script = SCRIPT.with_name("rollouts.py")
    command = [sys.executable, str(script), "--shapes", "nano-qwen3", "--rows", "3", "--tokens", "5", "--rounds", "1"]
    done = subprocess.run([*command, "--dtype", "bfloat16"], check=True, capture_output=True, text=True)
    rows = [row.split(" | ") for row in done.stdout.splitlines()[3:]]
    assert [row[3] for row in rows] == ["rollouts", "engine"]
    assert all(float(row[4].replace(",", "")) > 0 for row in rows)
    mean, largest = map(float, " | ".join(rows[0][6:]).strip(" |").split(" | "))
    assert 0 < mean < 0.01 and mean <= largest < 0.1


@pytest.mark.parametrize("name", ["nano", "workshop"])
def test_operations_are_counted_as_pytorch_counts_them(name: str) -> None:
    """PyTorch counts all of attention; causal attention needs half of that."""
    from torch.utils.flop_counter import FlopCounterMode

    from groundling.model.gpt import GPT

    count = runpy.run_path(str(SCRIPT))["flops_per_step"]
    preset = PRESETS[name]
    m = preset.model
    with torch.device("meta"):
        model = GPT(m, 65)
        with FlopCounterMode(display=False) as counter:
            model(torch.zeros(1, m.block_size, dtype=torch.int64)).sum().backward()
    windows = preset.training.batch_size * preset.training.accumulate
    square = 2 * m.n_layer * m.block_size**2 * m.n_embd  # a product of attention: 2 of them forward, 4 back
    assert count(preset) / windows + 3 * square == pytest.approx(counter.get_total_flops(), rel=1e-6)
