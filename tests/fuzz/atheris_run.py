"""Fuzzing by Atheris: bytes that it shapes by what they reach.

    pip install atheris
    python tests/fuzz/atheris_run.py -max_total_time=600 -max_len=8192 work tests/fuzz/corpus

`tests/fuzz/corpus/` is where it begins, `work` an empty folder for what it learns. A crasher, written where it was
started, belongs into `tests/fuzz/crashers/` and is tried by the tests from then on.
"""

from __future__ import annotations

import sys

import atheris

with atheris.instrument_imports(include=["groundling", "harness"]):
    import harness

if __name__ == "__main__":
    atheris.Setup(sys.argv, harness.one_input)
    atheris.Fuzz()
