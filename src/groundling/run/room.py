"""How much of a run goes through memory at once; made smaller, and kept in the run's record, where memory runs out."""

from __future__ import annotations

import dataclasses
import gc
from collections.abc import Callable
from typing import Any

import torch

from groundling import storage
from groundling.data.batches import Batches
from groundling.data.corpus import Corpus
from groundling.evaluation.score import Score, score, windows_at_once
from groundling.model.gpt import GPT
from groundling.run.run import Run
from groundling.training.checkpoints import TrainState
from groundling.training.compiling import choose_forward, compiled_forward
from groundling.training.events import Notice, OutOfMemory, Subscriber
from groundling.training.objective import Objective
from groundling.training.out_of_memory import ADVICE, OutOfMemoryError, halved, is_out_of_memory


class Room:
    """The batches of a run and what they go through, in training and evaluation.

    Half of the windows at once take about half of the memory. A step reads the same windows in twice the passes, and
    learns the same but for rounding; so a resume must cut them likewise, and finds how in the record.
    """

    def __init__(self, run: Run, batches: Batches, model: GPT, state: TrainState, tell: Subscriber) -> None:
        self.run, self.batches, self.model, self.state, self.tell = run, batches, model, state, tell
        self.settings, self.machine = run.config.training, run.machine
        usual = windows_at_once(batches.block_size, model.vocab_size)
        self.evaluation_batch = min(usual, run.record["machine"].get("evaluation_batch", usual))

    def choose_forward(self, objective: Objective) -> Callable[..., torch.Tensor]:
        """The model, compiled if that is worth it. What was decided stands in the record: a resume does the same."""
        while True:
            try:
                return self._try_forward(objective)
            except Exception as error:
                if isinstance(error, OutOfMemoryError) or not is_out_of_memory(error):
                    raise
            self.model.zero_grad(set_to_none=True)
            self._halve("in the first pass")

    def _try_forward(self, objective: Objective) -> Callable[..., torch.Tensor]:
        machine, settings, run = self.machine, self.settings, self.run
        batch = tuple(part.to(machine.device) for part in self.batches(self.state.step))
        passes = (settings.steps - self.state.step) * settings.accumulate
        chosen = choose_forward(self.model, objective, batch, machine, passes, settings.accumulate == 1)
        forward, is_compiled, reason = chosen
        if machine.compile == "on" and not is_compiled:
            self.tell(Notice(f"Training runs uncompiled: {reason}."))
        if machine.compile == "auto":
            run.record["machine"]["compile"] = "on" if is_compiled else "off"
            storage.write_json(run.folder / "config.json", run.record)
        reasons = (*machine.reasons, reason) if reason else machine.reasons
        self.machine = dataclasses.replace(machine, compile="on" if is_compiled else "off", reasons=reasons)
        return forward

    def shrink(self, doing: str) -> tuple[Callable[..., torch.Tensor], Batches, Any]:
        """Smaller passes from now on. Raises OutOfMemoryError if a pass has a single window already."""
        self._halve(doing)
        return self._forward(self.model, self.settings.accumulate == 1), self.batches, self.settings

    def teaching(self, teacher: GPT) -> Callable[..., torch.Tensor]:
        """A model that is not trained itself, compiled if the trained one is."""
        return self._forward(teacher, graphs=False)

    def _forward(self, model: GPT, graphs: bool) -> Callable[..., torch.Tensor]:
        return compiled_forward(model, self.machine, graphs) if self.machine.compile == "on" else model

    def evaluate(self, text: Corpus, stopped: Callable[[], bool]) -> Score:
        """Score the validation part. Raises Interrupted once `stopped()` says so, and OutOfMemoryError."""
        while True:
            try:
                return score(
                    self.model, text.validation, text.tokenizer, self.machine,
                    max_tokens=self.settings.eval_tokens, batch_size=self.evaluation_batch, stopped=stopped,
                )  # fmt: skip
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
            if self.evaluation_batch == 1:
                raise OutOfMemoryError(f"Memory ran out in an evaluation, with a single window of text. {ADVICE}")
            self.evaluation_batch //= 2
            self._record("in an evaluation")

    def _halve(self, doing: str) -> None:
        smaller = halved(self.settings)
        if smaller is None:
            raise OutOfMemoryError(f"Memory ran out {doing}, with a single window of text. {ADVICE}")
        self.settings = smaller
        self.batches = dataclasses.replace(self.batches, batch_size=smaller.batch_size, accumulate=smaller.accumulate)
        self._record(doing)

    def _record(self, doing: str) -> None:
        gc.collect()
        if self.machine.device.type == "cuda":
            torch.cuda.empty_cache()
        run, settings, state = self.run, self.settings, self.state
        run.record["settings"] = dataclasses.replace(run.config, training=settings).to_dict()
        run.record["machine"]["evaluation_batch"] = self.evaluation_batch
        storage.write_json(run.folder / "config.json", run.record)
        del run.config
        event = OutOfMemory(
            state.step, state.evaluated_step, doing, settings.batch_size, settings.accumulate, self.evaluation_batch,
            state.rollbacks,
        )  # fmt: skip
        self.tell(event)
