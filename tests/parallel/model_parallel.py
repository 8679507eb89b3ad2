"""Trains tiny models divided among several processes, and on one, with the real trainer: what differs goes into JSON.

Started by torchrun, once for all cases: see test_tensor.py. Every rank also trains the reference, alone.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
from data_parallel import is_saved, saved

from groundling import storage
from groundling.config import Config, CorpusSettings
from groundling.data.conversations import Conversation, Message
from groundling.data.corpus import prepare
from groundling.data.examples import examples_of
from groundling.data.sources import find_source
from groundling.data.tokenizers.base import CharTokenizer
from groundling.data.tokenizers.chat import with_chat
from groundling.machine import choose
from groundling.model.initial import InitialModel
from groundling.parallel import processes
from groundling.parallel.mesh import Mesh
from groundling.parallel.shards import gathered, row_orders
from groundling.tasks import new_task
from groundling.training import events
from groundling.training.checkpoints import Checkpoints
from groundling.training.step import micro_batches
from groundling.training.trainer import Trainer

STEPS = 20
_MODEL = {"dropout": 0.0, "n_layer": 4, "n_head": 4, "n_embd": 32, "block_size": 48}
_FAMILIES: dict[str, dict[str, Any]] = {
    "gpt2": {**_MODEL, "norm": "layernorm", "position": "learned", "mlp": "gelu"},
    "qwen3": {
        **_MODEL, "n_head": 8, "n_kv_head": 4, "norm": "rmsnorm", "position": "rope", "mlp": "swiglu", "mlp_size": 40,
        "tie_head": False,
    },
}  # fmt: skip
_TRAINING: dict[str, Any] = {
    "steps": STEPS, "warmup_steps": 2, "learning_rate": 2e-3, "eval_every": 10, "checkpoint_every": 10,
    "accumulate": 2, "batch_size": 4, "grad_clip": 0.5, "device": "cpu", "dtype": "float32", "compile": "off",
}  # fmt: skip
_WORDS = "the cat saw a dog and ran off, but it did not look back. "


def trainer(case: dict[str, Any], folder: Path, alone: bool) -> Trainer:
    """On a text, or on conversations whose replies have different lengths, several in a row if `packed`."""
    ways = {} if alone else {f"{name}_parallel": n for name, n in case["ways"].items()}
    settings = _TRAINING | {"optimizer": case["optimizer"], **ways}
    data: Any
    if case["task"] == "pretraining":
        text = folder / f"text-{processes.rank()}.txt"  # the folder may be that of all ranks
        text.write_text("".join(_WORDS[i % 7 :] for i in range(60)))
        more = {"weight_average": 0.2, "matrix_learning_rate": 0.01, "sample_tokens": 5}
        config = Config.build(str(text), "nano", **settings, **more, **_FAMILIES[case["family"]])
        data = prepare(find_source(text), CorpusSettings())
    else:
        parent = Config.build("", "nano", **_FAMILIES[case["family"]])
        config = Config.tuning("sft", "", parent, str(folder), **settings, packing=case["task"] == "sft, packed")
        tokenizer = with_chat(CharTokenizer(sorted("\n :;#0123456789abcdefghijklmnopqrstuvwxyz")))
        chats = [
            Conversation((Message("user", f"ask {i}"), Message("assistant", "word " * (i % 5) + str(i))), "")
            for i in range(60)
        ]
        data = examples_of(chats, "", tokenizer, config.model.block_size - 1, "conversations", 0.2, [])
    initial = InitialModel(config.model, data.tokenizer.vocab_size, 1)
    machine = choose(config.machine)
    mesh = Mesh.single() if alone else Mesh.build(config.machine, machine.device, "ddp")
    task = new_task(data, config, initial)
    return Trainer(initial, task, config.training, machine, Checkpoints(folder / "checkpoints"), None, mesh)


def trained(case: dict[str, Any], folder: Path, alone: bool) -> dict[str, Any]:
    """The clipped gradients of the first step, losses and norms of all, the evaluations, and the checkpoint at the end.

    The run stops halfway. The second half starts from the checkpoint of the other kind, so that each must be complete.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("config.json", "tokenizer.json"):
        storage.write_json(folder / name, {})  # other ranks may have it already
    made, found = trainer(case, folder, alone), list[events.Event]()
    learner, settings = made.learner, made.settings
    batch = made.task.batch(0, learner.model)
    parts = micro_batches(batch, settings.accumulate, made.task.weight, settings.seed, 0, lambda: False, made.mesh)
    learner.gradients(parts, settings.accumulate, made.machine)
    gradients = {name: p.grad for name, p in learner.model.named_parameters() if p.grad is not None}
    gradients = gathered(gradients, row_orders(learner.model), made.mesh)
    gradients = {name: x.clone() for name, x in gradients.items()}
    learner.zero_grad()
    made.subscribers.append(found.append)
    made.run()
    if not alone:
        folder = processes.from_main(folder)
    last = folder / "checkpoints" / f"step-{STEPS:06d}"
    return {
        "gradients": gradients,
        "losses": [event.loss for event in found if isinstance(event, events.Step)],
        "norms": [event.grad_norm for event in found if isinstance(event, events.Step)],
        "scores": [event.validation_loss for event in found if isinstance(event, events.Evaluation)],
        "samples": [event.text for event in found if isinstance(event, events.Sample)],
        "weights": saved(last / "model.safetensors"),
        "training": saved(last / "optimizer.safetensors"),
        "is_saved": is_saved(made, last),
        "mesh": str(made.mesh),
    }


def resumed(case: dict[str, Any], folder: Path, checkpoint: Path, alone: bool) -> dict[str, torch.Tensor]:
    """The weights at the end, if the second half is trained from a checkpoint."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("config.json", "tokenizer.json"):
        storage.write_json(folder / name, {})  # other ranks may have it already
    made = trainer(case, folder, alone)
    made.resume(checkpoint)
    made.run()
    here = folder if alone else processes.from_main(folder)
    return saved(here / "checkpoints" / f"step-{STEPS:06d}" / "model.safetensors")


def compare(case: dict[str, Any], one: dict[str, Any], several: dict[str, Any]) -> dict[str, Any]:
    def apart(kind: str) -> float:
        assert one[kind].keys() == several[kind].keys(), one[kind].keys() ^ several[kind].keys()
        return max(float((x - several[kind][name]).abs().max()) for name, x in one[kind].items())

    assert one["gradients"].keys() == several["gradients"].keys()
    return case | {
        "mesh": several["mesh"],
        "is_saved": several["is_saved"],
        "gradients": {
            name: float((x - several["gradients"][name]).norm() / x.norm()) for name, x in one["gradients"].items()
        },
        "losses": max(abs(a - b) for a, b in zip(one["losses"], several["losses"], strict=True)),
        "norms": max(abs(a / b - 1) for a, b in zip(one["norms"], several["norms"], strict=True)),
        "scores": max(abs(a - b) for a, b in zip(one["scores"], several["scores"], strict=True)),
        "samples": [one["samples"], several["samples"]],
        "weights": apart("weights"),
        "training": apart("training"),
        "learned": one["losses"][0] - one["losses"][-1],
    }


def main(cases: list[dict[str, Any]], folder: Path) -> None:
    torch.set_num_threads(1)
    results, references = [], dict[str, Any]()
    with processes.joined():
        for number, case in enumerate(cases):
            same = json.dumps(case | {"ways": {}, "resumes": False})
            own = folder / f"one-{processes.rank()}-{number}"
            several = trained(case, folder / f"several-{number}", alone=False)
            if same not in references:
                references[same] = own, trained(case, own, alone=True)
            own, one = references[same]
            result = compare(case, one, several) if processes.is_main() else {}
            if case["resumes"]:
                half = Path("checkpoints") / f"step-{STEPS // 2:06d}"
                source = processes.from_main(own)  # one process trains the first half, and several the second
                shutil.copytree(source / half, folder / f"half-{processes.rank()}-{number}" / half)
                given = folder / f"half-{processes.rank()}-{number}" / half
                weights = [
                    resumed(case, folder / f"to-several-{number}", given, alone=False),
                    resumed(case, folder / f"to-one-{processes.rank()}-{number}",
                            processes.from_main(folder / f"several-{number}") / half, alone=True),
                ]  # fmt: skip
                result["resumed"] = [
                    max(float((x - end[name]).abs().max()) for name, x in one["weights"].items()) for end in weights
                ]
            results.append(result)
    if processes.is_main():
        (folder / "results.json").write_text(json.dumps(results))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]), Path(sys.argv[2]))
