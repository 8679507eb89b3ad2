"""When checkpoints are written: at once, or in the background, while training goes on."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from groundling.parallel.mesh import Mesh
from groundling.parallel.processes import Ranks
from groundling.training.checkpoints import Checkpoints, Snapshot


class Saver:
    """Writes snapshots. Those of a rank that has a part of the model are written by a thread, one at a time.

    The threads of all ranks agree on each step of a save by a process group of their own. If one rank dies, the others'
    threads end with an error, as their training does. Raises OSError with a sentence, on rank 0, if a write fails, at
    the next `poll`, `wait` or `save`.
    """

    def __init__(
        self, checkpoints: Checkpoints, mesh: Mesh, saved: Callable[[int, str], None], in_background: bool = True
    ) -> None:
        """`saved` is called with the step and name of each checkpoint when it is complete. If not `in_background`,
        training waits for that."""
        self.checkpoints, self.mesh, self.saved, self.in_background = checkpoints, mesh, saved, in_background
        self._writing: tuple[int, Future[Path]] | None = None
        self._thread: ThreadPoolExecutor | None = None

    def save(self, take: Callable[[], Snapshot], keep: int) -> None:
        """Take a snapshot when the checkpoint before is complete, and save it, or begin to. All ranks must call this.
        For `keep`, see `Checkpoints.save`."""
        self.wait()
        snapshot = take()
        step = snapshot.state.step
        if snapshot.offsets is None:
            if self.mesh.is_main:
                self.checkpoints.save(snapshot, keep)
            self.saved(step, self.checkpoints.path(step).name)
            return
        if self._thread is None:
            self._thread, self._ranks = ThreadPoolExecutor(1, "checkpoint"), Ranks.in_background()
        self._writing = step, self._thread.submit(self.checkpoints.save, snapshot, keep, self._ranks)
        if not self.in_background:
            self.wait()

    def poll(self) -> None:
        """Call `saved` if a checkpoint is complete by now."""
        if self._writing and self._writing[1].done():
            self.wait()

    def wait(self) -> None:
        """Wait until nothing is being written."""
        if self._writing is None:
            return
        (step, writing), self._writing = self._writing, None
        try:
            path = writing.result()
        except OSError:
            if self.mesh.is_main:
                raise
            return  # rank 0 says it, and all end when they miss it
        self.saved(step, path.name)
