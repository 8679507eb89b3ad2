"""A run written by hand, file by file, so that every figure on its page is known."""

from __future__ import annotations

import copy
import json
import re
from html.parser import HTMLParser
from typing import Any

from groundling.analysis.memorization import TrainingText
from groundling.config import Config
from groundling.reporting.run_facts import Facts

RECORD: dict[str, Any] = {
    "created": "2026-05-04T06:07:08+00:00",
    "corpus": {"name": "a text", "documents": 1, "characters": 90_000, "vocab_size": 61},
    "machine": {"device": "cpu", "dtype": "float32", "reasons": ["no GPU is here"]},
    "versions": {"python": "3.11.7", "groundling": "0.1.0"},
}


class Written:
    """Lines of a run's files. Change them, then ask for its `facts`."""

    def __init__(self, **settings: Any) -> None:
        self.config = Config.build("a text", "nano", **settings)
        self.record = copy.deepcopy(RECORD) | {"settings": self.config.to_dict()}
        self.result: dict[str, Any] | None = None
        corpus = RECORD["corpus"] | {"training_tokens": 81_000, "validation_tokens": 9_000}
        self.lines: list[dict[str, Any]] = [
            {"event": "started", "step": 0, "corpus": corpus, "parameters": [["MLP", 700], ["attention", 300]]}
        ]
        self.samples: list[dict[str, Any]] = []
        self.replies: list[dict[str, Any]] = []

    @classmethod
    def tuned(cls, task: str, /, **settings: Any) -> Written:
        """A run that was trained further, with nothing logged yet."""
        run = cls()
        run.config = Config.tuning(task, "pairs.jsonl", run.config, "", **settings)
        run.record |= {"settings": run.config.to_dict()}
        run.lines[0] |= {"steps": 100, "epochs": 2.0, "task": task}
        return run

    def scored(self, step: int, metric: str, score: float, best: bool = False, **figures: float) -> Written:
        self.evaluation(step, score)
        self.lines[-1] |= {"metric": metric, "figures": figures, "bits_per_byte": None, "best": best}
        return self

    def replied(self, step: int, *groups: tuple[str, dict[str, float]]) -> Written:
        """Each group is a prompt and the reward of each reply."""
        made = [{"prompt": p, "replies": list(r), "rewards": list(r.values())} for p, r in groups]
        self.replies.append({"event": "replies", "step": step, "groups": made})
        return self

    def checked(self) -> Written:
        self.lines.append(
            {"event": "checked", "milestones": [4.1, 3.3, 2.4, 2.0, 2.2], "one_gram": 3.2, "leakage": 0.125}
        )
        return self

    def step(self, step: int, loss: float, **more: Any) -> Written:
        line = {"event": "step", "step": step, "loss": loss, "learning_rate": 1e-3, "tokens_per_second": 5000.0}
        self.lines.append(line | {"elapsed": 0.5 * step} | more)
        return self

    def evaluation(self, step: int, loss: float) -> Written:
        before = [x["validation_loss"] for x in self.lines if x["event"] == "evaluation" and x["step"] > 0]
        self.lines.append(
            {"event": "evaluation", "step": step, "validation_loss": loss, "bits_per_byte": 1.5 * loss,
             "training_loss": loss, "best": step > 0 and loss < min(before, default=9e9), "elapsed": 0.5 * step}
        )  # fmt: skip
        return self

    def sample(self, step: int, text: str, prompt: str = "\n", **more: Any) -> Written:
        self.samples.append({"event": "sample", "step": step, "prompt": prompt, "text": text} | more)
        return self

    def facts(self, text: TrainingText | None = None) -> Facts:
        files = (self.record, self.config, self.lines, self.samples, self.result)
        return Facts("my-run", *files, text, self.replies)


class Page(HTMLParser):
    """What a browser would find: all text by the nearest element with an id, the tags, and the script's data."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.source = page
        self.text: dict[str, list[str]] = {}
        self.tags: list[str] = []
        self.marks: list[str] = []
        self.ids: list[str] = []
        self._open: list[tuple[str, str]] = []
        self.feed(page)
        self.close()
        found = re.search(r'<script id="data" type="application/json">(.*?)</script>', page, re.DOTALL)
        assert found
        self.data = json.loads(found[1])

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = dict(attributes)
        assert not {"src", "href"} & given.keys(), "the page must not need another file"
        assert not any(name.startswith("on") for name in given), "nothing runs but the page's own script"
        self.tags.append(tag)
        if given.get("id"):
            self.ids.append(str(given["id"]))
        if tag == "mark":
            self.marks.append("")
        if tag not in ("meta", "input", "path", "link"):
            self._open.append((tag, given.get("id") or ""))

    def handle_endtag(self, tag: str) -> None:
        while self._open and self._open.pop()[0] != tag:
            pass

    def handle_data(self, data: str) -> None:
        for key in {key for _, key in self._open if key}:
            self.text.setdefault(key, []).append(data)
        if self._open and self._open[-1][0] == "mark":
            self.marks[-1] += data

    def words(self, key: str) -> str:
        """The text of an element, in which every run of spaces is one."""
        return " ".join(" ".join(self.text[key]).split())
