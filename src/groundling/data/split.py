"""Where the training part ends and the validation part begins."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def split_point(ends: npt.NDArray[np.int64], total: int, val_fraction: float) -> int:
    """Where the validation part begins: at the document border nearest to its share of the text.

    A border that would make the validation part less than half or more than twice its share is not
    used: the text is then cut inside a document, as it is where there is only one.
    """
    cut = int((1 - val_fraction) * total)
    near = np.searchsorted(ends, cut)
    candidates = [int(end) for end in ends[max(near - 1, 0) : near + 1]]
    split_point = min(candidates, key=lambda end: abs(end - cut), default=cut)
    return split_point if 0.5 <= (total - split_point) / max(total - cut, 1) <= 2 and split_point > 0 else cut
