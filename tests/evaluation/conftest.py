"""What the tests of evaluation share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from groundling.data.tokenizers.base import Tokenizer
from groundling.data.tokens import Tokens


@pytest.fixture
def tokens_of(tmp_path: Path) -> Callable[[str, Tokenizer], Tokens]:
    """The tokens of a text, in a file below tmp_path."""

    def tokens_of(text: str, tokenizer: Tokenizer) -> Tokens:
        path = tmp_path / f"{tokenizer.kind}.bin"
        ids = tokenizer.encode_array(text).astype(np.uint16)
        ids.tofile(path)
        return Tokens(path, "uint16", 0, len(ids))

    return tokens_of
