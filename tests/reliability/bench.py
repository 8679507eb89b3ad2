"""A small training that does all that a run does to the disk, to be killed wherever one likes.

    python tests/reliability/bench.py FOLDER EVERY

forks a process for each operation k (or each EVERY-th), which SIGKILL ends at k, and then another that gives the same
command again. Torch is imported once for all of them: a trial takes a tenth of a second.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from disks import HALVES, Killing, Logging
from safetensors.torch import load_file

from groundling import storage
from groundling.config import Config
from groundling.data.corpus import prepare
from groundling.data.sources import find_source
from groundling.machine import choose
from groundling.model.gpt import GPT
from groundling.model.initial import InitialModel
from groundling.run.metrics_log import MetricsLog, rewind
from groundling.tasks.self_distillation import SelfDistillation
from groundling.training.checkpoints import AllDamaged, Checkpoints
from groundling.training.events import Event, Sample
from groundling.training.trainer import Trainer


class Quick(SelfDistillation):
    """It writes its samples in no time, and each generation starts from the same weights: the last step is the best."""

    def begin_stage(self, stage: int, step: int, model: GPT) -> Event:
        event = super().begin_stage(stage, step, model)
        model.load_state_dict(self.initial.build().state_dict())
        return event

    def sample(self, model: GPT, step: int, stopped: Callable[[], bool]) -> Sample:
        return Sample(step, "", "some text")


TEXT = "".join(f"{n} is {n % 7} sevens and {n * n} squared.\n" for n in range(60))
STEPS = 3  # the last two of them are the second generation's


def train(folder: Path) -> str:
    """Prepare the text, continue from the newest checkpoint, train to the end: the hash of all that came of it."""
    text, run = folder / "text.txt", folder / "run"
    folder.mkdir(exist_ok=True, parents=True)
    text.write_text(TEXT)
    os.environ["GROUNDLING_CACHE"] = str(folder / "cache")
    config = Config.build(
        str(text), "nano", n_layer=1, n_head=2, n_embd=8, block_size=8, batch_size=2, steps=STEPS, eval_every=1,
        checkpoint_every=1, log_every=1, keep_checkpoints=1, warmup_steps=1, eval_tokens=32, dropout=0.1,
        generations=2,
        device="cpu", dtype="float32", compile="off",
    )  # fmt: skip
    machine, settings = choose(config.machine), config.training
    corpus = prepare(find_source(text), config.text)
    storage.make_folder(run)
    if not (run / "config.json").exists():
        corpus.tokenizer.save(run / "tokenizer.json")
        storage.write_json(run / "config.json", {"corpus": {"fingerprint": corpus.fingerprint}})
    checkpoints = Checkpoints(run / "checkpoints")
    storage.remove_temporary(run)
    storage.remove_temporary(checkpoints.folder)
    initial = InitialModel(config.model, corpus.tokenizer.vocab_size, seed=1)
    trainer = Trainer(initial, Quick(corpus, config, initial), settings, machine, checkpoints)
    trainer.subscribers.append(MetricsLog(run))
    newest = newest_of(checkpoints)
    if newest is None and checkpoints.folder.exists():
        shutil.rmtree(checkpoints.folder)  # as the refusal says
    if newest:
        trainer.resume(newest)
    rewind(run, trainer.state.step, trainer.state.evaluated_step)
    assert trainer.run()
    return outcome(run)


def newest_of(checkpoints: Checkpoints) -> Path | None:
    """The newest whole checkpoint, if there is one."""
    with suppress(AllDamaged):
        return checkpoints.newest(lambda sentence: None)
    return None


def outcome(run: Path) -> str:
    """A hash of all tensors of the last checkpoint and of all that was logged, but for what a clock says."""
    checkpoints, digest = Checkpoints(run / "checkpoints"), hashlib.sha256()
    last = checkpoints.pointed("last")
    assert last == checkpoints.path(STEPS) and checkpoints.pointed("best") is not None
    for name in ("model.safetensors", "optimizer.safetensors"):
        for key, tensor in sorted(load_file(last / name).items()):
            digest.update(key.encode() + tensor.numpy().tobytes())
    for line in storage.read_json_lines(run / "metrics.jsonl") + storage.read_json_lines(run / "samples.jsonl"):
        if line["event"] != "saved":  # a run that goes on from a checkpoint says once more that it is saved
            timeless = {k: v for k, v in line.items() if k not in ("elapsed", "tokens_per_second", "seconds_left")}
            digest.update(json.dumps(timeless).encode())
    return digest.hexdigest()


def forked(action: Callable[[], Any]) -> tuple[int, str]:
    """The signal that ended a fork of this process (0: none), and what `action` returned in it."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            answer = str(action())
        except BaseException:
            answer = traceback.format_exc()
        os.write(writer, answer.encode()[-60_000:])
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        answer = pipe.read()
    return os.waitpid(child, 0)[1] & 0x7F, answer


def train_on(folder: Path, disk: storage.Disk) -> str:
    storage.disk = disk
    return train(folder)


def operations(folder: Path) -> list[str]:
    """The names of all operations of a training in `folder`."""
    disk = Logging()
    train_on(folder, disk)
    return [name for name, _, _ in disk.log]


def kill(folder: Path, at: int, midway: bool) -> None:
    signal, answer = forked(lambda: train_on(folder, Killing(at, midway)))
    assert signal == 9, f"operation {at} was not reached: {answer}"


def half_way(folder: Path) -> None:
    """A training that was killed while it wrote its last checkpoint, and whose newest whole one is damaged."""
    names = operations(folder / "counted before")
    storage.disk = storage.Disk()
    kill(folder / "run", [n for n, name in enumerate(names, start=1) if name == "fill"][-1], midway=True)
    weights = folder / "run" / "run" / "checkpoints" / f"step-{STEPS - 1:06d}" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\xff")


def kills(folder: Path, begin: Callable[[Path], object], every: int) -> Iterator[str]:
    """Kill a training before each operation, and midway through, continue it, and yield what went wrong ("": nothing).

    `begin` makes the folder that it finds.
    """
    expected = train(folder / "undisturbed")  # in this process, so that all that is imported late is there
    begin(folder / "counted")
    names = forked(lambda: "\n".join(operations(folder / "counted")))[1].split("\n")
    points = [(n, midway) for n, name in enumerate(names, start=1) for midway in (False, True)[: 1 + (name in HALVES)]]
    for at, midway in points[::every]:
        trial = folder / "trial"
        begin(trial)
        kill(trial, at, midway)
        again = forked(lambda: train(trial))[1]  # noqa: B023
        again += ", ".join(map(str, trial.rglob(".tmp-*")))  # what was half-written must not stay
        shutil.rmtree(trial)
        where = f"{'midway through' if midway else 'before'} operation {at} ({names[at - 1]}): "
        yield "" if again == expected else where + again


def main(folder: Path, every: int) -> None:
    """Begin with nothing, then with a run that was killed and damaged before, and print what came of both."""
    torch.set_num_threads(1)
    (folder / "new").mkdir()
    failures = list(kills(folder / "new", Path.mkdir, every))
    half_way(folder / "old")
    failures += kills(folder / "old", lambda to: shutil.copytree(folder / "old" / "run", to), every)
    print(json.dumps({"kills": len(failures), "failures": list(filter(None, failures))}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
