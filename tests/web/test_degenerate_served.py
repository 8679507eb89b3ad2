"""Models of the smallest and dullest texts, served and in the studio."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from asked import TINY, Server, serving

import groundling
from groundling.analysis.model_trace import ModelTrace, neighbours
from groundling.config import Sampling
from groundling.web.loaded_model import open_runs

TEXTS = {"one-character": ("char", "a" * 60), "all-different": ("bpe", "".join(map(chr, range(0x4E00, 0x4E00 + 60))))}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of runs."""
    folder = tmp_path_factory.mktemp("dull")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GROUNDLING_CACHE", str(folder / "cache"))
        for name, (tokenizer, text) in TEXTS.items():
            (folder / f"{name}.txt").write_text(text, encoding="utf-8")
            small = TINY | {"block_size": 4, "steps": 3, "eval_every": 1, "warmup_steps": 0, "tokenizer": tokenizer}
            groundling.train(folder / f"{name}.txt", name=name, out=folder / "runs", **small)
    return folder / "runs"


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Server]:
    with serving(open_runs([groundling.load(name, out=folder) for name in TEXTS])) as server:
        yield server


@pytest.mark.filterwarnings("error::RuntimeWarning")
@pytest.mark.parametrize("name", TEXTS)
def test_they_are_served(name: str, server: Server) -> None:
    prompt, common = TEXTS[name][1][:2], {"model": name, "max_tokens": 4, "seed": 1}
    for more in ({"logprobs": 5}, {"temperature": 0}, {"top_p": 0.1, "frequency_penalty": 2}, {"echo": True, "n": 2}):
        answer = server.post("/v1/completions", {**common, "prompt": prompt, **more})
        assert answer.status == 200, answer.body
        json.loads(answer.body, parse_constant=lambda constant: pytest.fail(f"{constant} is not JSON"))
    chat = {"messages": [{"role": "user", "content": prompt}], "logprobs": True, "top_logprobs": 3}
    answer = server.post("/v1/chat/completions", {**common, **chat})
    assert answer.status == 200 or answer.error["message"]
    streamed = server.post("/v1/completions", {**common, "prompt": "", "stream": True})
    assert streamed.status == 200 and streamed.body.endswith(b"data: [DONE]\n\n")
    unknown = server.post("/v1/completions", {**common, "prompt": "☃"})
    assert unknown.status == (200 if TEXTS[name][0] == "bpe" else 400)
    server.is_well()


@pytest.mark.filterwarnings("error::RuntimeWarning")
@pytest.mark.parametrize("name", TEXTS)
def test_the_studio_shows_them(name: str, folder: Path) -> None:
    pytest.importorskip("nicegui", reason="needs the extra studio")
    from groundling.reporting.charts import drawn
    from groundling.web.studio.charts import MEASURES, comparison
    from groundling.web.studio.studio import Studio
    from groundling.web.studio.writing import opened, write

    studio = Studio(folder)
    live = studio.live(name)
    live.refresh()
    facts: Any = live.facts
    assert facts.slides and facts.ladder and facts.figures and facts.status.startswith("finished")
    for measure in MEASURES:
        for axis in ("step", "second"):
            chart, last, missing = comparison(studio, list(TEXTS), measure, axis)
            if measure not in ("bits per byte", "validation loss", "training loss"):  # of post-training
                assert chart is None and missing == list(TEXTS)
                continue
            assert chart is not None and not missing
            json.dumps(drawn(chart, last), allow_nan=False)
    json.dumps(facts.charts, allow_nan=False)
    run = opened(folder.resolve() / name)
    ids = run.prompt_ids(TEXTS[name][1][:2])
    written = list(write(run, ids, Sampling(seed=1), 3))
    assert written and all(0 <= token.probability <= 1 and not math.isnan(token.probability) for token in written)
    trace = ModelTrace(run.model, ids)
    assert float(trace.attention(0).sum(-1).mean()) == pytest.approx(1)
    assert float(trace.probabilities(1).sum(-1).mean()) == pytest.approx(1)
    assert all(-1.01 <= likeness <= 1.01 for _, likeness in neighbours(run.model, ids[0]))
