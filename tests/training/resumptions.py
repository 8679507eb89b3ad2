"""Run by test_resume.py: trains runs, and resumes each from many of its steps, each time in a process of its own.

This interpreter imports everything and trains nothing. Each run and each resume is a fork of it, in which nothing is
known of a model, an optimizer or a text but what the run's files say; some are new interpreters altogether.

    python resumptions.py FOLDER < jobs.json

`jobs.json` maps the name of a run to its `settings`, its `text`, the `steps` to resume it from, and `mutations`: names
of faults to plant, each in a resume from step 24. Prints what differs first from the run that was left alone, or null,
for each `name/step/mutation`.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from groundling import storage
from groundling.experiments.compare_runs import first_difference
from groundling.experiments.session import import_all

STEPS = 64
MUTATED_STEP = 24  # in the midst of a generation
FRESH_STEP = 29
AT_ONCE = 2


def train_whole(folder: Path, name: str, job: dict[str, Any]) -> None:
    """A run that is not interrupted, with a checkpoint after each step that a resume begins from."""
    import groundling
    from groundling.run import session
    from groundling.training.events import Event, Step
    from groundling.training.trainer import Trainer

    batches, emit = listen_to_batches(), Trainer.emit

    def emit_and_save(self: Trainer, event: Event) -> None:
        emit(self, event)
        if isinstance(event, Step) and event.step in {*job["steps"], MUTATED_STEP}:
            self.checkpoints.save(self.learner.snapshot(self.state), 0)  # as a stop after this step would

    Trainer.emit = emit_and_save  # type: ignore[method-assign]
    session._finish = lambda *_: None  # its pictures and pages take longer than all the steps
    groundling.train(
        job["text"], name=name, out=folder, on_event=lambda event: None, checkpoint_every=STEPS, keep_checkpoints=0,
        **job["settings"],
    )  # fmt: skip
    bits = storage.read_json(folder / name / "config.json")["bits"]
    assert (bits["compile"], bits["dtype"]) == (job["settings"]["compile"], job["settings"]["dtype"])
    storage.write_json(folder / name / "batches.json", batches)


def resume(folder: Path, name: str, step: int, mutation: str) -> str | None:
    """Resume a copy of the run that stands where it stood after `step` steps; what differs first at the end."""
    import groundling
    from groundling.run import session

    whole, copy = folder / name, folder / f"{name}-{step}-{mutation}"
    shutil.copytree(whole, copy, ignore=shutil.ignore_patterns("checkpoints", "batches.json"))
    (copy / "checkpoints").mkdir()
    if step:
        shutil.copytree(whole / "checkpoints" / f"step-{step:06d}", copy / "checkpoints" / f"step-{step:06d}")
    if mutation:
        MUTATIONS[mutation]()
    batches = listen_to_batches()
    session._finish = lambda *_: None
    groundling.resume(copy, on_event=lambda event: None)
    expected: dict[str, Any] = storage.read_json(whole / "batches.json")
    if batches != {key: places for key, places in expected.items() if int(key) >= step}:
        return "The batches differ."
    difference = first_difference(copy, whole)
    shutil.rmtree(copy)
    return difference


def listen_to_batches() -> dict[str, list[int]]:
    """Fills itself with the places of each batch's windows, by step."""
    from groundling.data.batches import WindowSampler

    told, offsets = dict[str, list[int]](), WindowSampler.offsets

    def listening(self: WindowSampler, step: int) -> Any:
        places = offsets(self, step)
        told[str(step)] = places.tolist()
        return places

    WindowSampler.offsets = listening  # type: ignore[method-assign]
    return told


def after_load(change: Callable[[Any, Any], None]) -> None:
    """Something is not brought back as it was saved: `change` gets the learner and the state."""
    from groundling.training.learner import Learner

    load = Learner.load

    def changing(self: Learner, checkpoint: Path) -> Any:
        state = load(self, checkpoint)
        change(self, state)
        return state

    Learner.load = changing  # type: ignore[method-assign]


def forget(quantity: str) -> None:
    """One quantity of the optimizer's state is not brought back, of one parameter."""

    def change(learner: Any, state: Any) -> None:
        states = [learner.optimizer.state_of(parameter) for parameter in learner.model.parameters()]
        next(state for state in states if quantity in state)[quantity].zero_()

    after_load(change)


def keep_average(learner: Any, state: Any) -> None:
    """Training continues with the average, in place of the weights that it is of."""
    for name, parameter in learner.model.named_parameters():
        parameter.data.copy_(learner.average._averages[name])


def lose_average(learner: Any, state: Any) -> None:
    """The average begins anew."""
    learner.average.forget()


def spoil_teacher(learner: Any, state: Any) -> None:
    """The model that teaches is another one."""
    for parameter in learner.task._teacher.parameters():
        parameter.mul_(1.01)


def shift_schedule() -> None:
    """The learning rate is that of the next step."""
    from groundling.training.clock import Clock

    progress = Clock.progress
    Clock.progress = lambda self, step: progress(self, step + 1)  # type: ignore[method-assign]


def shift_dropout() -> None:
    """Dropout is drawn with the seed of the next step."""
    from groundling.training import step

    seed = step._dropout_seed
    step._dropout_seed = lambda s, n, micro_step: seed(s, n + 1, micro_step)


def shift_data() -> None:
    """Each window of the text begins one token later."""
    from groundling.data.corpus import Tokens

    windows = Tokens.windows
    Tokens.windows = lambda self, starts, length: windows(  # type: ignore[method-assign]
        self, starts + (starts.max() + length < len(self)), length
    )


def shift_order() -> None:
    """The batches are those of the next step."""
    from groundling.data.batches import WindowSampler

    offsets = WindowSampler.offsets
    WindowSampler.offsets = lambda self, step: offsets(self, step + 1)  # type: ignore[method-assign]


def next_weight(learner: Any, state: Any) -> None:
    """One weight is the next larger number."""
    import torch

    weight = learner.model.wte.weight.data.view(-1)
    weight[0] = torch.nextafter(weight[0], torch.tensor(torch.inf))


MUTATIONS: dict[str, Callable[[], None]] = {
    "first moment of AdamW": lambda: forget("exp_avg"),
    "second moment of AdamW": lambda: forget("exp_avg_sq"),
    "step count of AdamW": lambda: forget("step"),
    "momentum of Muon": lambda: forget("momentum"),
    "weights that the model is the average of": lambda: after_load(keep_average),
    "average of the weights": lambda: after_load(lose_average),
    "weights of the teacher": lambda: after_load(spoil_teacher),
    "step at which the generation began": lambda: after_load(lambda learner, state: setattr(state, "stage_step", 0)),
    "step of the schedule": shift_schedule,
    "seed of dropout": shift_dropout,
    "data by one token": shift_data,
    "data by one batch": shift_order,
    "last bit of one weight": lambda: after_load(next_weight),
    "mean of the losses": lambda: after_load(lambda learner, state: setattr(state, "loss_sum", 0.0)),
}


def work(folder: Path, task: str, job: dict[str, Any]) -> None:
    """`task` is the name of a run to train, or `name/step/mutation`; leaves a file with what differs."""
    name, *place = task.split("/")
    result = train_whole(folder, name, job) if not place else resume(folder, name, int(place[0]), place[1])
    storage.write_json(folder / f"{task.replace('/', '-')}.result", result)


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
    print(json.dumps({p: storage.read_json(f) if f.exists() else "It failed." for p, f in results.items()}))
    return None


if __name__ == "__main__":
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")  # no pool of processes in each fork
    main(Path(sys.argv[1]), *sys.argv[2:])
