"""Two tiny runs, trained once: a Qwen3 on characters of several scripts, and a GPT-2 on BPE tokens."""

from __future__ import annotations

import pytest
from small import QWEN3_PARTS, trained

from groundling.run.run import Run


@pytest.fixture(scope="session")
def characters(tmp_path_factory: pytest.TempPathFactory, prose: str) -> Run:
    """One document, so there is no end-of-text token. Characters have one to four bytes, and some share the first."""
    text = "".join(f"{line}\n — “é”, ß; ’tis ‘語’\t語誤 😀🙂\r\n" for line in prose[:12_000].split("\n"))
    return trained(tmp_path_factory.mktemp("characters"), text, n_head=4, n_kv_head=2, head_size=10, **QWEN3_PARTS)


@pytest.fixture(scope="session")
def pieces(tmp_path_factory: pytest.TempPathFactory, prose: str) -> Run:
    return trained(tmp_path_factory.mktemp("pieces"), prose, tokenizer="bpe", vocab_size=400, tie_head=False)
