"""Where the training part ends and the validation part starts."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def split_point(ends: npt.NDArray[np.int64], total: int, val_fraction: float) -> int:
    """Start of the validation part: the document border nearest to its share of the text.

    If that border makes the validation part less than half or more than twice its share, or if there is only one
    document, the text is cut inside a document.
    """
    cut = int((1 - val_fraction) * total)
    near = np.searchsorted(ends, cut)
    candidates = [int(end) for end in ends[max(near - 1, 0) : near + 1]]
    border = min(candidates, key=lambda end: abs(end - cut), default=cut)
    return border if 0.5 <= (total - border) / max(total - cut, 1) <= 2 and border > 0 else cut
