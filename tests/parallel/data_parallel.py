"""Trains tiny models on several processes and on one, with the real trainer: what differs goes into a JSON file.

Started by torchrun, once for all cases: see test_data_parallel.py. Every rank also trains the reference, alone.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import torch

from groundling import storage
from groundling.config import Config, CorpusSettings
from groundling.data.conversations import Conversation, Message
from groundling.data.corpus import prepare
from groundling.data.examples import examples_of
from groundling.data.sources import find_source
from groundling.data.tokenizers.base import CharTokenizer
from groundling.data.tokenizers.chat import with_chat
from groundling.machine import choose
from groundling.model.adapter import AdapterSpec
from groundling.model.initial import InitialModel
from groundling.model.weights_file import read_shapes, read_tensors
from groundling.parallel import processes
from groundling.parallel.mesh import Mesh
from groundling.parallel.shards import gathered, row_orders
from groundling.tasks import new_task
from groundling.training import events
from groundling.training.checkpoints import Checkpoints
from groundling.training.trainer import Trainer

STEPS = 20
_FAMILIES: dict[str, dict[str, Any]] = {
    "gpt2": {"norm": "layernorm", "position": "learned", "mlp": "gelu"},
    "qwen3": {"norm": "rmsnorm", "position": "rope", "mlp": "swiglu", "n_kv_head": 1, "tie_head": False},
}
_TINY: dict[str, Any] = {
    "n_layer": 2, "n_head": 2, "n_embd": 20, "block_size": 16, "dropout": 0.0, "steps": STEPS, "warmup_steps": 2,
    "learning_rate": 2e-3, "matrix_learning_rate": 0.01, "weight_average": 0.2, "eval_every": 10, "sample_every": 0,
    "checkpoint_every": 100, "device": "cpu", "dtype": "float32", "compile": "off",
}  # fmt: skip
_WORDS = "the cat saw a dog and ran off, but it did not look back. "


def trainer(case: dict[str, Any], folder: Path, mode: str) -> Trainer:
    """On a text, or on conversations whose replies have different lengths: 12 rows a step."""
    accumulate = case["accumulate"]
    settings = _TINY | _FAMILIES[case["family"]] | {"accumulate": accumulate, "batch_size": 12 // accumulate}
    data: Any
    if case["task"] == "pretraining":
        text = folder / f"text-{processes.rank()}.txt"  # the folder may be that of all ranks
        text.write_text("".join(_WORDS[i % 7 :] for i in range(60)))
        config = Config.build(str(text), "nano", **settings, optimizer=case["optimizer"])
        data = prepare(find_source(text), CorpusSettings())
    else:
        settings |= {"block_size": 48}
        model = {name: settings.pop(name) for name in (*_FAMILIES[case["family"]], *list(_TINY)[:5])}
        parent = Config.build("", "nano", **model | {"block_size": 48})
        del settings["weight_average"], settings["matrix_learning_rate"]
        settings.pop("block_size", None)
        adapter = {"adapter": 2} if case["task"] == "sft, adapter" else {}
        config = Config.tuning("sft", "", parent, str(folder), **settings, **adapter)
        tokenizer = with_chat(CharTokenizer(sorted("\n :;#0123456789abcdefghijklmnopqrstuvwxyz")))
        chats = [
            Conversation((Message("user", f"ask {i}"), Message("assistant", "word " * (i % 5) + str(i))), "")
            for i in range(60)
        ]
        data = examples_of(chats, "", tokenizer, 47, "conversations", 0.2, [])
    initial = InitialModel(config.model, data.tokenizer.vocab_size, 1)
    task = new_task(data, config, initial)
    machine = choose(config.machine)
    mesh = Mesh.single() if mode == "one" else Mesh.build(config.machine, machine.device, mode)  # type: ignore[arg-type]
    spec = AdapterSpec(2) if case["task"] == "sft, adapter" else None
    return Trainer(initial, task, config.training, machine, Checkpoints(folder / "checkpoints"), spec, mesh)


def trained(case: dict[str, Any], folder: Path, mode: str) -> dict[str, Any]:
    """Losses and norms of each step, the evaluations, and the checkpoint at the end.

    A mode such as `fsdp, one, ddp` is three sessions: the run is stopped, and resumed in another way.
    """
    steps, scores, modes = list[events.Step](), list[float](), mode.split(", ")
    for session, each in enumerate(modes):
        if session:
            folder = own_copy(folder) if each == "one" else processes.from_main(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("config.json", "tokenizer.json"):
            storage.write_json(folder / name, {})  # other ranks may have it already
        made, end = trainer(case, folder, each), STEPS * (session + 1) // len(modes)
        if session:
            made.resume(made.checkpoints.path(made.checkpoints.steps()[-1]))
        made.subscribers += [
            lambda event: steps.append(event) if isinstance(event, events.Step) else None,
            lambda event: scores.append(event.validation_loss) if isinstance(event, events.Evaluation) else None,
        ]
        made.compile()
        made.run(lambda made=made, end=end: made.state.step >= end)
    if each != "one":
        processes.agree(True)  # until rank 0 has saved
    assert [event.step for event in steps] == list(range(1, STEPS + 1))
    checkpoint = folder / "checkpoints" / f"step-{STEPS:06d}"
    return {
        "losses": [step.loss for step in steps],
        "norms": [step.grad_norm for step in steps],
        "scores": scores,
        "weights": saved(checkpoint / "model.safetensors"),
        "training": saved(checkpoint / "optimizer.safetensors"),
        "is_saved": is_saved(made, checkpoint),
        "files": len(list(checkpoint.glob("*.safetensors"))),
        "mesh": str(made.mesh),
    }


def saved(file: Path) -> dict[str, torch.Tensor]:
    return read_tensors(file, read_shapes(file))


def is_saved(made: Trainer, checkpoint: Path) -> bool:
    """Whether the shards of a checkpoint have what the trainer has, to the bit. All ranks must ask."""
    learner = made.learner
    if not made.mesh.has_parts:
        return True
    orders, state = row_orders(learner.model), {**learner.optimizer.state_dict(), **learner.average.state_dict()}
    parts = (("model", learner.average.weights()), ("optimizer", state))
    wholes = {name: gathered(tensors, orders, made.mesh) for name, tensors in parts}
    if not made.mesh.is_main:
        return True
    found = {name: saved(checkpoint / f"{name}.safetensors") for name in wholes}
    return all(
        found[name].keys() == tensors.keys() and all(torch.equal(x, found[name][key]) for key, x in tensors.items())
        for name, tensors in wholes.items()
    )


def own_copy(folder: Path) -> Path:
    """A copy of rank 0's folder, in which a rank can train alone."""
    source = processes.from_main(folder)
    target = folder.with_name(f"{folder.name}-{processes.rank()}")
    shutil.copytree(source, target)
    processes.agree(True)  # until all have copied it
    return target


def compare(case: dict[str, Any], one: dict[str, Any], several: dict[str, Any]) -> dict[str, Any]:
    weights = [(x, several["weights"][name]) for name, x in one["weights"].items()]
    return case | {
        "mesh": several["mesh"],
        "is_saved": several["is_saved"],
        "files": several["files"],
        "quantities": {name: list(x.shape) for name, x in several["training"].items()},
        "quantities_of_one": {name: list(x.shape) for name, x in one["training"].items()},
        "first": abs(one["losses"][0] - several["losses"][0]),
        "losses": max(abs(a - b) for a, b in zip(one["losses"], several["losses"], strict=True)),
        "norms": max(abs(a / b - 1) for a, b in zip(one["norms"], several["norms"], strict=True)),
        "evaluations": [abs(a - b) for a, b in zip(one["scores"], several["scores"], strict=True)],
        "weights": max(float((x - y).abs().max()) for x, y in weights),
        "learned": one["losses"][0] - one["losses"][-1],
    }


def main(cases: list[dict[str, Any]], folder: Path) -> None:
    torch.set_num_threads(1)
    if pretended := os.environ.get("GROUNDLING_TEST_LOCAL_SIZE"):
        os.environ["LOCAL_WORLD_SIZE"] = pretended
    results, references = {}, dict[str, Any]()
    with processes.joined():
        for number, case in enumerate(cases):
            mode, same = case["mode"], json.dumps(case | {"mode": ""})
            if same not in references:
                references[same] = trained(case, folder / f"one-{processes.rank()}-{number}", "one")
            results["-".join(map(str, case.values()))] = compare(
                case, references[same], trained(case, folder / f"several-{number}", mode)
            )
    if processes.is_main():
        (folder / "results.json").write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]), Path(sys.argv[2]))
