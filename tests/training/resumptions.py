"""Run by test_resume.py: trains runs, and resumes each from many of its steps, each time in a process of its own.

This interpreter imports everything and trains nothing. Each run and each resume is a fork of it, in which nothing is
known of a model, an optimizer or a text but what the run's files say; some are new interpreters altogether.

    python resumptions.py FOLDER < jobs.json

`jobs.json` maps the name of a run to its `verb`, the function to call, with `arguments` and `settings`; the `steps` to
resume it from; and `mutations`: names of faults to plant (planted_faults.py), each in a resume from step 24. Prints
what differs first from the run that was left alone, or null, for each `name/step/mutation`.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any

from planted_faults import MUTATIONS

from groundling import storage
from groundling.experiments.compare_runs import first_difference
from groundling.experiments.session import import_all

STEPS = 64  # of a pretraining
MUTATED_STEP = 24  # in the midst of a generation
FRESH_STEP = 29
AT_ONCE = 2
FAILED = "It failed."


def train_whole(folder: Path, name: str, job: dict[str, Any]) -> None:
    """A run that is not interrupted, with a checkpoint after each step that a resume begins from."""
    import groundling
    from groundling.training.events import Event, Step
    from groundling.training.trainer import Trainer

    batches, emit = quickly(), Trainer.emit

    def emit_and_save(self: Trainer, event: Event) -> None:
        emit(self, event)
        if isinstance(event, Step) and event.step in {*job["steps"], MUTATED_STEP}:
            self.checkpoints.save(self.learner.snapshot(self.state), 0)  # as a stop after this step would

    Trainer.emit = emit_and_save  # type: ignore[method-assign]
    settings = job["settings"]
    getattr(groundling, job["verb"])(
        *job["arguments"], name=name, out=folder, on_event=lambda event: None, keep_checkpoints=0,
        **settings | {"checkpoint_every": settings["steps"]},
    )  # fmt: skip
    bits = storage.read_json(folder / name / "config.json")["bits"]
    assert bits["dtype"] == settings["dtype"] and bits["compile"] == settings.get("compile", "off")
    storage.write_json(folder / name / "batches.json", batches)


def resume(folder: Path, name: str, step: int, mutation: str, job: dict[str, Any]) -> str | None:
    """Resume a copy of the run that stands where it stood after `step` steps; what differs first at the end."""
    import groundling

    whole, copy = folder / name, folder / f"{name}-{step}-{mutation}"
    shutil.copytree(whole, copy, ignore=shutil.ignore_patterns("checkpoints", "batches.json"))
    (copy / "checkpoints").mkdir()
    if step:
        shutil.copytree(whole / "checkpoints" / f"step-{step:06d}", copy / "checkpoints" / f"step-{step:06d}")
    if job["settings"].get("compile", "off") == "off":
        os.environ["GROUNDLING_CACHE"] = str(copy / "cache")  # nothing is known from before
    if mutation:
        MUTATIONS[mutation]()
    batches = quickly()
    groundling.resume(copy, on_event=lambda event: None)
    expected: dict[str, str] = storage.read_json(whole / "batches.json")
    if batches != {key: digest for key, digest in expected.items() if int(key) >= step}:
        return "The batches differ."
    difference = first_difference(copy, whole)
    shutil.rmtree(copy)
    return difference


def quickly() -> dict[str, str]:
    """Leave out what takes longer than all the steps. Returns a mapping that fills itself with a hash of each step's
    batch."""
    from groundling.run import session
    from groundling.tasks.prompts import TaskPrompts
    from groundling.training.trainer import Trainer

    session._finish = lambda *_: None  # pictures and pages
    TaskPrompts.n_validation = 8
    digests, make_step = dict[str, str](), Trainer._step

    def listening(self: Trainer, batch: Any, interruptible: bool) -> Any:
        tensors = [batch.tokens, batch.targets, batch.weights, *batch.extras.values()]
        content = b"".join(tensor.numpy().tobytes() for tensor in tensors if tensor is not None)
        digests[str(self.state.step)] = hashlib.sha256(content + repr(batch.figures).encode()).hexdigest()
        return make_step(self, batch, interruptible)

    Trainer._step = listening  # type: ignore[method-assign]
    return digests


def work(folder: Path, task: str, job: dict[str, Any]) -> None:
    """`task` is the name of a run to train, or `name/step/mutation`; leaves a file with what differs, or failed."""
    name, *place = task.split("/")
    if not place:
        train_whole(folder, name, job)
        return
    try:
        difference = resume(folder, name, int(place[0]), place[1], job)
    except Exception:
        difference = f"{FAILED} {traceback.format_exc()[-2000:]}"
    storage.write_json(folder / f"{task.replace('/', '-')}.result", difference)


def work_all(folder: Path, tasks: list[tuple[str, dict[str, Any]]]) -> None:
    """Each in a process of its own, some at a time."""
    fork = multiprocessing.get_context("fork")
    running: list[Any] = []
    for task, job in tasks:
        if len(running) == AT_ONCE:
            running.pop(0).join()
        running.append(fork.Process(target=work_fresh if f"/{FRESH_STEP}/" in task else work, args=(folder, task, job)))
        running[-1].start()
    for process in running:
        process.join()


def work_fresh(folder: Path, task: str, job: dict[str, Any]) -> None:
    subprocess.run([sys.executable, __file__, str(folder), task], input=json.dumps(job), text=True, check=True)


def run_all(jobs: dict[str, Any], folder: Path) -> dict[str, str | None]:
    """What differs first after each resume, from an interpreter of its own."""
    done = subprocess.run(
        [sys.executable, __file__, str(folder)], input=json.dumps(jobs), stdout=subprocess.PIPE, text=True, check=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "GROUNDLING_CACHE": str(folder / "cache")},
    )  # fmt: skip
    found: dict[str, str | None] = json.loads(done.stdout)
    return found


def main(folder: Path, task: str = "") -> None:
    jobs: dict[str, Any] = json.load(sys.stdin)
    if task:
        return work(folder, task, jobs)
    import_all()
    work_all(folder, list(jobs.items()))
    places = {
        f"{name}/{step}/{mutation}": job
        for name, job in jobs.items()
        for step, mutation in [*((s, "") for s in job["steps"]), *((MUTATED_STEP, m) for m in job["mutations"])]
    }
    work_all(folder, list(places.items()))
    results = {place: folder / f"{place.replace('/', '-')}.result" for place in places}
    print(json.dumps({p: storage.read_json(f) if f.exists() else FAILED for p, f in results.items()}))
    return None


if __name__ == "__main__":
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")  # no pool of processes in each fork
    main(Path(sys.argv[1]), *sys.argv[2:])
