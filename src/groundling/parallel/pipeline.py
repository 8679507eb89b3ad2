"""Pipeline parallelism: each rank holds some of the blocks, and the micro-batches of a step flow through all ranks.

PyTorch's schedules do the work: while a rank computes one micro-batch, the others compute others, forward or backward
(1F1B: Narayanan et al., "Memory-Efficient Pipeline-Parallel DNN Training", 2021). So `--accumulate` should be several
times the number of stages: with fewer micro-batches, ranks wait for each other.

The first stage has the embeddings and the last one the output head. Where the head is the token embedding, both have
it, and their gradients are added up: two copies that stay the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
import torch.nn as nn
import torch.nn.functional as F
from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleGPipe

from groundling.data.batches import Batch
from groundling.model.gpt import GPT, Block, PartRunner, _run
from groundling.model.packing import Cache, PackedRows
from groundling.model.recompute import recomputed
from groundling.parallel.shards import local
from groundling.parallel.tensor import reduce_gradients
from groundling.parallel.whole import whole

LossOf = Callable[[Callable[..., torch.Tensor], Batch], torch.Tensor]
"""`(forward, batch)` -> the loss of a micro-batch, a scalar."""
Autocast = Callable[[], AbstractContextManager[Any]]


class StagedGPT(GPT):
    """The modules of a GPT that one rank of a group has, under their usual names. The others are missing."""

    def __init__(self, whole: GPT, group: dist.ProcessGroup) -> None:
        nn.Module.__init__(self)
        self.group, self.stage, self.stages = group, dist.get_rank(group), dist.get_world_size(group)
        self.config, self.vocab_size, self.drop = whole.config, whole.vocab_size, whole.drop
        self.is_first, self.is_last = self.stage == 0, self.stage == self.stages - 1
        self.ties = whole.lm_head is None
        if self.is_first or (self.is_last and self.ties):
            self.wte = whole.wte
        self.wpe = whole.wpe if self.is_first else None
        here = torch.arange(len(whole.h)).tensor_split(self.stages)[self.stage].tolist()
        self.h = nn.ModuleList(block if i in here else nn.Identity() for i, block in enumerate(whole.h))
        self.lm_head = whole.lm_head if self.is_last else None
        if self.is_last:
            self.ln_f = whole.ln_f

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    def copies(self) -> list[torch.Tensor]:
        """Parameters that an earlier stage has too."""
        return [self.wte.weight] if self.ties and self.is_last else []

    def parameter_table(self) -> list[tuple[str, int]]:
        """That of the whole model."""
        with torch.device("meta"):
            return GPT(self.config, self.vocab_size).parameter_table()

    def through(self, x: torch.Tensor, position: PackedRows | None = None) -> torch.Tensor:
        """This stage's blocks: token ids (B, T), or the residual stream (B, T, C) -> the residual stream."""
        if self.is_first:
            x = self.add_positions(self.wte(x), position)
        for block in self.blocks:
            x = recomputed(Block.__call__, block, x, position) if block.recompute == "blocks" else block(x, position)
        return x

    def forward(
        self, tokens: torch.Tensor, cache: Cache | None = None, run: PartRunner = _run,
        targets: torch.Tensor | None = None, weights: torch.Tensor | None = None,
    ) -> torch.Tensor:  # fmt: skip
        """Logits (B, T, V) in float32, on all ranks. They compute one after the other: for evaluation."""
        assert cache is None and targets is None and run is _run
        x = tokens
        if not self.is_first:
            x = torch.empty(*tokens.shape, self.config.n_embd, device=tokens.device)
            dist.recv(x, group=self.group, group_src=self.stage - 1)
        x = self.through(x)
        if not self.is_last:
            dist.send(x, group=self.group, group_dst=self.stage + 1)
            logits = torch.empty(*tokens.shape, self.vocab_size, device=tokens.device)
        else:
            logits = whole(self.head(x)).float()
        dist.broadcast(logits, group=self.group, group_src=self.stages - 1)
        return logits


class Pipeline:
    """Computes the gradients of a step, all micro-batches at once."""

    def __init__(self, model: StagedGPT, loss: LossOf, device: torch.device) -> None:
        self.model, self.device = model, device
        self._part = _Part(model, loss)
        self._schedules: dict[tuple[int, torch.Size], Schedule1F1B | ScheduleGPipe] = {}

    def backward(self, parts: Sequence[tuple[Batch, float]], scale: float, autocast: Autocast) -> torch.Tensor:
        """Add the gradients of micro-batches, each given with its share of the loss, times `scale`. Returns the sum of
        their losses times their shares, on all ranks."""
        model, order = self.model, torch.arange(len(parts))
        batches = of_one_shape([batch for batch, _ in parts])
        parts = [(batch, share * scale) for batch, (_, share) in zip(batches, parts, strict=True)]
        self._part.micro_batches, self._part.autocast = parts, autocast
        torch.manual_seed(torch.initial_seed() + model.stage)  # other dropout masks than in the other stages
        shape = parts[0][0].tokens.shape
        schedule = self._schedules.get((len(parts), shape)) or self._new_schedule(len(parts), shape)
        losses: list[torch.Tensor] = []
        inputs = [torch.cat([part.tokens for part, _ in parts])] if model.is_first else []
        schedule.step(*inputs, number=order, target=order, losses=losses, return_outputs=False)
        if model.ties:
            reduce_gradients(model)  # of the embedding, each tensor rank may have another part by now
            self._add_up_tied()
        loss = torch.stack(losses).detach().sum() if losses else torch.zeros((), device=self.device)
        dist.broadcast(loss, group=model.group, group_src=model.stages - 1)
        return loss / scale

    def _new_schedule(self, n: int, shape: torch.Size) -> Schedule1F1B | ScheduleGPipe:
        model = self.model
        stream = torch.empty(*shape, model.config.n_embd, device=self.device, requires_grad=True)
        tokens, loss = torch.empty(shape, dtype=torch.int64, device=self.device), torch.empty((), device=self.device)
        stage = PipelineStage(
            self._part, model.stage, model.stages, self.device, group=model.group,
            input_args=tokens if model.is_first else stream, output_args=loss if model.is_last else stream,
        )  # fmt: skip
        kind = Schedule1F1B if n >= model.stages else ScheduleGPipe
        schedule = kind(stage, n, loss_fn=lambda loss, _: loss, scale_grads=False)
        self._schedules[n, shape] = schedule
        return schedule

    def _add_up_tied(self) -> None:
        """Exchange the gradients of the token embedding between the first and the last stage."""
        model = self.model
        if not (model.is_first or model.is_last):
            return
        gradient = model.wte.weight.grad
        assert gradient is not None
        own = local(gradient)
        other, peer = torch.empty_like(own), model.stages - 1 if model.is_first else 0
        ways = [
            dist.P2POp(dist.isend, own.clone(), group=model.group, group_peer=peer),
            dist.P2POp(dist.irecv, other, group=model.group, group_peer=peer),
        ]
        for work in dist.batch_isend_irecv(ways):
            work.wait()
        own += other


class _Part(nn.Module):
    """What a schedule runs on this rank for micro-batch `number`. The last stage gives its loss."""

    micro_batches: Sequence[tuple[Batch, float]]
    autocast: Autocast

    def __init__(self, model: StagedGPT, loss: LossOf) -> None:
        super().__init__()
        self.model, self.loss = model, loss

    def forward(self, x: torch.Tensor, number: torch.Tensor) -> torch.Tensor:
        batch, factor = self.micro_batches[int(number)]
        with self.autocast():
            if self.model.is_last:
                return whole(self.loss(partial(self._rest, x), batch)) * factor
            packed = PackedRows(batch.extras["documents"]) if "documents" in batch.extras else None
            return self.model.through(x, packed)

    def _rest(
        self, x: torch.Tensor, tokens: torch.Tensor, packed: PackedRows | None = None, **targets: Any
    ) -> torch.Tensor:
        """`GPT.forward`, of whose `tokens` the stages before have computed `x`."""
        return self.model.head(self.model.through(x, packed), **targets)


def of_one_shape(batches: Sequence[Batch]) -> list[Batch]:
    """The same batches, filled up to the largest with tokens of weight 0."""
    B, T = (max(batch.tokens.size(dim) for batch in batches) for dim in (0, 1))
    return [batch if batch.tokens.shape == (B, T) else _filled_up(batch, B, T) for batch in batches]


def _filled_up(batch: Batch, B: int, T: int) -> Batch:
    room = (0, T - batch.tokens.size(1), 0, B - len(batch))
    weights = torch.ones_like(batch.tokens, dtype=torch.float32) if batch.weights is None else batch.weights
    extras = {name: F.pad(x, room, value=-1) for name, x in batch.extras.items()}
    return Batch(F.pad(batch.tokens, room), F.pad(batch.targets, room), F.pad(weights, room), extras)


def clip_grad_norm_(model: StagedGPT, max_norm: float) -> torch.Tensor:
    """`torch.nn.utils.clip_grad_norm_` for the gradients of all stages together."""
    copies = {id(parameter) for parameter in model.copies}
    own = [p.grad for p in model.parameters() if p.grad is not None and id(p) not in copies]
    squares = whole(torch.nn.utils.get_total_norm(own)) ** 2
    dist.all_reduce(squares, group=model.group)
    torch.nn.utils.clip_grads_with_norm_(model.parameters(), max_norm, squares**0.5)
    return squares**0.5
