"""The loss of every token: those that `score` adds up, and a page that shows them."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import groundling
from groundling.config import MachineSettings, ModelSettings
from groundling.data.corpus import Corpus
from groundling.data.tokenizers.base import END_OF_TEXT, ByteTokenizer, CharTokenizer, Tokenizer
from groundling.data.tokens import Tokens
from groundling.evaluation.score import Score, score
from groundling.evaluation.token_losses import TokenLoss, token_losses
from groundling.machine import choose
from groundling.model.gpt import GPT
from groundling.reporting.token_loss_page import loss_page
from groundling.run.run import Run

MACHINE = choose(MachineSettings(device="cpu", dtype="float32"))


def a_model(vocab_size: int, block_size: int = 16) -> GPT:
    torch.manual_seed(0)
    model = GPT(ModelSettings(block_size=block_size, n_layer=1, n_head=2, n_embd=16), vocab_size)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(5)  # an untrained model is indifferent; this one has opinions
    return model


@pytest.mark.parametrize("sliding", [False, True])
def test_they_are_what_the_score_adds_up(sliding: bool, text_file: Path) -> None:
    corpus = Corpus.open(str(text_file))
    model, tokens = a_model(corpus.tokenizer.vocab_size), corpus.validation
    losses = token_losses(model, tokens, corpus.tokenizer, MACHINE, sliding=sliding)
    result = score(model, tokens, corpus.tokenizer, MACHINE, sliding=sliding)
    assert len(losses) == result.tokens == len(tokens) - 1
    assert sum(each.loss for each in losses) / len(losses) == pytest.approx(result.loss, rel=1e-6)
    assert [each.token for each in losses] == tokens.read(1, len(tokens)).tolist()
    assert "".join(each.text for each in losses) == corpus.tokenizer.decode(tokens.read(1, len(tokens)))


def test_probabilities_and_choices_are_the_models(text_file: Path) -> None:
    corpus = Corpus.open(str(text_file))
    model, tokenizer = a_model(corpus.tokenizer.vocab_size), corpus.tokenizer
    first = Tokens(corpus.train.path, corpus.train.dtype, 0, 10)
    losses = token_losses(model, first, tokenizer, MACHINE, n_choices=4)
    ids = torch.from_numpy(first.read(0, 10))
    with torch.no_grad():
        shares = model(ids[None, :-1])[0].softmax(-1)
    for i, each in enumerate(losses):
        assert each.probability == pytest.approx(float(shares[i, ids[i + 1]]), rel=1e-4)
        assert each.loss == pytest.approx(-math.log(each.probability))
        best = shares[i].topk(4)
        assert [text for text, _ in each.choices] == [tokenizer.decode([int(n)]) for n in best.indices]
        assert [share for _, share in each.choices] == pytest.approx(best.values.tolist(), rel=1e-4)


def test_a_character_of_several_tokens_stands_where_it_ends(tokens_of: Callable[[str, Tokenizer], Tokens]) -> None:
    tokens = tokens_of("aé☃😀b", ByteTokenizer())
    losses = token_losses(a_model(256), tokens, ByteTokenizer(), MACHINE)
    assert [each.text for each in losses] == ["", "é", "", "", "☃", "", "", "", "😀", "b"]
    page = loss_page("t", "a", losses, A_SCORE, 11, 256)
    shown = Page(page)
    assert shown.tokens == ["é", "☃", "😀", "b"]
    assert [count for _, count, _ in shown.data] == [2, 3, 4, 1]
    assert shown.data[1][0] == pytest.approx(sum(each.loss for each in losses[2:5]), abs=1e-3)


def test_the_end_of_a_document_is_shown(tmp_path: Path) -> None:
    tokenizer = CharTokenizer("ab", end_of_text=True)
    np.array([0, 2, 1], dtype=np.uint16).tofile(tmp_path / "t.bin")
    losses = token_losses(a_model(3), Tokens(tmp_path / "t.bin", "uint16", 0, 3), tokenizer, MACHINE)
    assert [each.text for each in losses] == [END_OF_TEXT, "b"]
    assert {text for text, _ in losses[0].choices} == {"a", "b", END_OF_TEXT}


A_SCORE = Score("non-overlapping", 1.0, math.e, 1.4427, 1.4427, 10, 10, 10)


class Page(HTMLParser):
    """What a browser would find: the painted tokens, their shades, the script's data, and every other tag."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tokens: list[str] = []
        self.shades: list[str] = []
        self.tags: list[str] = []
        self._inside = self._mark = False
        self.feed(page)
        self.close()
        found = re.search(r'<script id="data" type="application/json">(.*?)</script>', page, re.DOTALL)
        assert found
        self.data = json.loads(found[1])

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = dict(attributes)
        self.tags.append(tag)
        if given.get("id") == "text":
            self._inside = True
        if tag == "i":
            self._mark = True
        if tag == "b" and self._inside:
            self.tokens.append("")
            self.shades.append(str(given["class"]))
        assert not {"src", "href"} & given.keys(), "the page must not need another file"

    def handle_endtag(self, tag: str) -> None:
        self._mark = False
        if tag == "div":
            self._inside = False

    def handle_data(self, data: str) -> None:
        if self._inside and self.tokens and not self._mark:
            self.tokens[-1] += data


def test_a_hostile_text_stays_text() -> None:
    evil = ["</script><script>alert(1)</script>", "<b class=x>", "&amp;", '"', "\0", "\x1b", "$title", "\n", "]]>"]
    losses = [TokenLoss(i, text, 0.5, math.exp(-0.5), ((text, 0.5),)) for i, text in enumerate(evil)]
    page = loss_page("<i>", "</div>", losses, A_SCORE, 9, 50)
    shown = Page(page)
    assert shown.tokens == [*evil[:4], "\u2400", "\u241b", *evil[6:]]
    assert [choices[0][0] for _, _, choices in shown.data][:2] == [evil[0].replace(" ", "␣"), "<b␣class=x>"]
    assert shown.tags.count("script") == 2
    assert "alert(1)</script>" not in page
    assert "http" not in page.replace("http-equiv", "")


def test_shades_follow_the_loss() -> None:
    ceiling = math.log(50)
    shares = [0.0, 0.09, 0.11, 0.55, 1.0, 7.0]
    losses = [TokenLoss(0, "a", share * ceiling, math.exp(-share * ceiling), ()) for share in shares]
    assert Page(loss_page("t", "", losses, A_SCORE, 7, 50)).shades == ["s0", "s0", "s1", "s5", "s10", "s10"]


@pytest.fixture
def run(text_file: Path, tiny: dict[str, Any]) -> Run:
    return groundling.train(text_file, name="first", on_event=lambda event: None, **tiny | {"steps": 6})


def test_a_run_writes_its_page(run: Run, prose: str, tmp_path: Path) -> None:
    result = run.evaluate(html="page.html", html_tokens=50, sliding=True)
    assert result["protocol"] == "sliding, stride 16"
    shown = Page(Path("page.html").read_text("utf-8"))
    validation = prose[int(0.9 * len(prose)) :]
    assert "".join(shown.tokens) == validation[1:51]
    losses = run.token_losses(max_tokens=50, sliding=True)
    assert [loss for loss, _, _ in shown.data] == pytest.approx([each.loss for each in losses], abs=1e-3)
    (tmp_path / "other.txt").write_text("the other text", encoding="utf-8")
    run.evaluate("other.txt", html="page.html")
    page = Path("page.html").read_text("utf-8")
    assert "".join(Page(page).tokens) == "he other text"
    assert "all tokens" in page


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"html": "nowhere/page.html"}, "--html nowhere/page.html: the folder"),
        ({"html": "runs"}, "--html runs is a folder"),
        ({"html": "page.html", "html_tokens": -1}, "--html-tokens must be at least 0, not -1."),
    ],
)
def test_a_page_that_cannot_be_is_one_sentence(arguments: dict[str, Any], sentence: str, run: Run) -> None:
    with pytest.raises(ValueError, match=re.escape(sentence)):
        run.evaluate(**arguments)
