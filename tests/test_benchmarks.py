"""The benchmarks run, and count right."""

from __future__ import annotations

import json
import os
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


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="needs a POSIX shell")
def test_the_gpu_script_runs_all_its_parts(tmp_path: Path, prose: str) -> None:
    """As in a fresh checkout without a network: the packages are there, groundling is not installed, and pip fails."""
    site = Path(torch.__file__).parents[1]
    python = tmp_path / "python"
    python.write_text(
        f'#!/bin/sh\n[ "$2" = pip ] && exit 1\nPYTHONPATH="$PYTHONPATH:{site}" exec {sys.executable} -S "$@"\n'
    )
    python.chmod(0o755)
    (tmp_path / "text.txt").write_text(prose, encoding="utf-8")
    out = tmp_path / "found" / "gpu.json"
    words = ["--dry-run", "--text", str(tmp_path / "text.txt"), "--out", str(out)]
    environment = {**os.environ, "PYTHON": str(python), "GROUNDLING_CACHE": str(tmp_path / "cache")}
    done = subprocess.run(
        [SCRIPT.with_name("gpu.sh"), *words], capture_output=True, text=True, cwd=tmp_path, env=environment
    )
    found = {part["part"]: part for part in json.loads(out.read_text(encoding="utf-8"))}
    assert not [part.get("error") for part in found.values() if "problem" in part]
    assert done.returncode == 0
    parts = ["peak", "gpt2", "steps", "tests", "target", "decode", "context", "rollouts"]
    assert list(found) == parts and all(found[name]["rows"] for name in parts)
    assert all(f"| {name} |" in done.stdout for name in parts)
    rates = [row["tokens_per_second"] for part in found.values() for row in part["rows"] if "tokens_per_second" in row]
    assert len(rates) == 7 and min(rates) > 0
    assert 0 < found["gpt2"]["rows"][-1]["share_of_peak"] < 1


@pytest.mark.slow
def test_a_part_that_fails_loses_nothing_else(tmp_path: Path) -> None:
    out, nothing = tmp_path / "gpu.json", tmp_path / "no-nanogpt"
    nothing.mkdir()
    words = ["--dry-run", "--parts", "peak", "gpt2", "--nanogpt", str(nothing), "--out", str(out)]
    done = subprocess.run([sys.executable, SCRIPT.with_name("gpu.py"), *words], capture_output=True, text=True)
    assert done.returncode == 1
    peak, gpt2 = json.loads(out.read_text(encoding="utf-8"))
    assert peak["rows"][0]["teraflops"] > 0 and "problem" not in peak
    assert [row["what"] for row in gpt2["rows"]] == ["gpt2, first round"]  # before it came to the missing model.py
    assert gpt2["problem"] == "exit status 1" and "No module named 'model'" in gpt2["error"]
    assert "| gpt2 | FAILED | exit status 1: ModuleNotFoundError" in done.stdout
