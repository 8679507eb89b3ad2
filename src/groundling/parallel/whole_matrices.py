"""Functions of whole matrices whose shards are on several processes, or of which each process has a copy.

Each matrix has an owner, which computes with it. The work is divided evenly: the largest matrix goes to the process
that has the least to do so far. (As in "Muon is Scalable for LLM Training", Liu et al., 2025, but each matrix is
gathered on one process only.)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import NamedTuple

import torch
import torch.distributed as dist

from groundling.parallel.mesh import Mesh
from groundling.parallel.shards import local, rows_here
from groundling.parallel.whole import as_part, is_sharded, own_part, whole

Compute = Callable[[Sequence[torch.Tensor], list[torch.Tensor]], list[list[torch.Tensor]]]
"""Takes parameters, and a whole matrix for each. Gives the result for each, in as many pieces as there are matrices
stacked in it."""


class Rows(NamedTuple):
    """The row counts of stacked matrices, and the order of their rows if ranks share them (parallel/tensor.py)."""

    counts: Sequence[int]
    order: torch.Tensor | None = None


class WholeMatrices:
    """The owners of matrices, which are all sharded by rows, or all whole on each rank. If they are sharded in other
    ways too, every rank computes with all of them."""

    def __init__(self, rows: Mapping[torch.Tensor, Rows], mesh: Mesh) -> None:
        self.rows, self.mesh, self.parameters = rows, mesh, list(rows)
        if mesh.devices is None:
            return
        self.group = mesh.devices["shard"].get_group() if mesh.shard > 1 else mesh.learners
        self.ranks = range(self.group.size())
        self.owned = owners([tuple(parameter.shape) for parameter in self.parameters], len(self.ranks))
        self.mine = self.owned[self.group.rank()]

    def map(
        self, compute: Compute, parameters: list[torch.Tensor], parts: list[torch.Tensor]
    ) -> list[Sequence[torch.Tensor]]:
        """Compute with matrices, one for each parameter, of which `parts` are here. Returns the pieces of the results,
        of each the part that is here."""
        if self.mesh.devices is None:
            return list[Sequence[torch.Tensor]](compute(parameters, parts))
        assert len(parameters) == len(self.parameters), "all have gradients"

        def results(wholes: list[torch.Tensor], places: Sequence[int]) -> list[torch.Tensor]:
            return list(map(torch.cat, compute([parameters[i] for i in places], wholes)))

        if not any(map(is_sharded, parameters)):
            found = self._spread(results([parts[i] for i in self.mine], self.mine), parts)
        elif all(map(_by_rows, parameters)):
            found = self._scatter(results(self._gather(parts), self.mine), parts)
        else:
            pairs = [(parameter, self.rows[parameter].order) for parameter in parameters]
            wholes = [whole(as_part(x, p), order) for x, (p, order) in zip(parts, pairs, strict=True)]
            wholes = results(wholes, range(len(wholes)))
            found = [local(own_part(x, p, order)) for x, (p, order) in zip(wholes, pairs, strict=True)]
        return [x.split(self.rows_here(p)) for x, p in zip(found, parameters, strict=True)]

    def rows_here(self, parameter: torch.Tensor) -> list[int]:
        """How many rows of each matrix that is stacked in a parameter are here."""
        return rows_here(self.rows[parameter].counts, parameter, self.rows[parameter].order)

    def _gather(self, shards: list[torch.Tensor]) -> list[torch.Tensor]:
        """The whole matrices that this rank owns."""
        sent = [_flat([shards[i] for i in owned], shards[0]) for owned in self.owned]
        sizes = [[self._size(i, rank) for i in self.mine] for rank in self.ranks]
        received = self._exchanged(sent, [sum(each) for each in sizes])
        pieces = [flat.split(each) for flat, each in zip(received, sizes, strict=True)]
        wholes = [torch.cat([of_rank[k] for of_rank in pieces]) for k in range(len(self.mine))]
        return [whole.view(self.parameters[i].shape) for whole, i in zip(wholes, self.mine, strict=True)]

    def _scatter(self, results: list[torch.Tensor], shards: list[torch.Tensor]) -> list[torch.Tensor]:
        """The shards of all results. This rank has computed `results`."""
        cut = [
            x.flatten().split([self._size(i, r) for r in self.ranks]) for i, x in zip(self.mine, results, strict=True)
        ]
        sent = [_flat([pieces[rank] for pieces in cut], shards[0]) for rank in self.ranks]
        received = self._exchanged(sent, [sum(shards[i].numel() for i in owned) for owned in self.owned])
        return self._in_order(received, shards)

    def _spread(self, results: list[torch.Tensor], wholes: list[torch.Tensor]) -> list[torch.Tensor]:
        """All results, whole. This rank has computed `results`."""
        room = max(sum(wholes[i].numel() for i in owned) for owned in self.owned)
        mine = _flat(results, wholes[0])
        everyone = [mine.new_empty(room) for _ in self.ranks]
        dist.all_gather(everyone, torch.cat([mine, mine.new_zeros(room - mine.numel())]), group=self.group)
        return self._in_order(everyone, wholes)

    def _exchanged(self, sent: list[torch.Tensor], sizes: list[int]) -> list[torch.Tensor]:
        """Send one flat tensor to each rank, and get one of these `sizes` from each."""
        received = sent[0].new_empty(sum(sizes))
        dist.all_to_all_single(received, torch.cat(sent), sizes, [x.numel() for x in sent], group=self.group)
        return list(received.split(sizes))

    def _in_order(self, by_owner: list[torch.Tensor], like: list[torch.Tensor]) -> list[torch.Tensor]:
        """The flat results of each owner, as a list in the order and shapes of `like`."""
        found = dict[int, torch.Tensor]()
        for flat, owned in zip(by_owner, self.owned, strict=True):
            sizes = [like[i].numel() for i in owned]
            for i, piece in zip(owned, flat[: sum(sizes)].split(sizes), strict=True):
                found[i] = piece.view(like[i].shape)
        return [found[i] for i in range(len(like))]

    def _size(self, i: int, rank: int) -> int:
        """The numbers of matrix `i` on a rank: DTensor gives each as many rows as the first, while they last."""
        rows, *others = self.parameters[i].shape
        each = -(-rows // len(self.ranks))
        return max(0, min(each, rows - rank * each)) * prod(others)


def owners(shapes: Sequence[Sequence[int]], ranks: int) -> list[list[int]]:
    """For each rank, which matrices it owns. The work is that of products with itself."""
    work = [prod(shape) * min(shape) for shape in shapes]
    owned, busy = [list[int]() for _ in range(ranks)], [0] * ranks
    for i in sorted(range(len(shapes)), key=lambda i: -work[i]):
        rank = busy.index(min(busy))
        owned[rank].append(i)
        busy[rank] += work[i]
    return owned


def _flat(tensors: Sequence[torch.Tensor], like: torch.Tensor) -> torch.Tensor:
    """All numbers of `tensors`, of the kind of `like` if there are none."""
    return torch.cat([like.new_empty(0), *(tensor.flatten() for tensor in tensors)])


def _by_rows(matrix: torch.Tensor) -> bool:
    from torch.distributed.tensor import DTensor, Replicate, Shard

    return isinstance(matrix, DTensor) and matrix.placements in ((Shard(0),), (Replicate(), Shard(0)))
