"""The check-up on texts in which something was planted, and on texts in which nothing was."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from groundling.checkup import characters as characters_module
from groundling.checkup import duplicates as duplicates_module
from groundling.checkup import leakage as leakage_module
from groundling.checkup import text as text_module
from groundling.checkup.findings import findings
from groundling.checkup.page import page
from groundling.checkup.report import Report, examine
from groundling.config import CorpusSettings
from groundling.data.hashing import window_hashes
from groundling.data.sources import find_source

Write = Callable[..., Path]
WORDS = [
    "stone", "river", "candle", "winter", "market", "garden", "letter", "silver", "window", "harbour",
    "morning", "lantern", "winding", "bread", "thunder", "copper", "valley", "feather", "kitchen", "marble",
    "orchard", "travel", "whisper", "bridge", "summer", "meadow", "castle", "painter", "ribbon",
]  # fmt: skip


def check(path: Path, **settings: Any) -> Report:
    return examine(find_source(path), CorpusSettings(**settings), lambda _: None, lambda *_: None)[0]


def paragraphs(n: int, seed: int = 1, words: list[str] = WORDS) -> list[str]:
    """Invented paragraphs of five lines, none like another."""
    rng = random.Random(seed)
    return ["\n".join(" ".join(rng.choices(words, k=9)) + "." for _ in range(5)) for _ in range(n)]


def kinds(report: Report) -> set[str]:
    return {oddity.kind for oddity in report.text.oddities}


def test_a_clean_text_has_nothing_to_look_at(write: Write) -> None:
    report = check(write("clean.txt", "\n\n".join(paragraphs(100)) + "\n"))
    assert not any(finding.look for finding in findings(report))
    assert report.leakage.leaked == 0
    assert report.leakage.longest == ()
    assert [(repeats.unit, repeats.repeated) for repeats in report.duplicates.exact] == [("line", 0), ("paragraph", 0)]
    assert report.duplicates.near.repeated == 0
    assert report.text.oddities == ()


def test_sizes(write: Write) -> None:
    text = "naïve café\nno line feed at the end" * 20
    report = check(write("sizes.txt", text))
    assert report.text.characters == len(text)
    assert report.text.bytes == len(text.encode())
    assert report.text.lines == 21
    assert report.documents == 1
    assert report.text.alphabet == len(set(text))
    assert report.tokens.training_tokens + report.tokens.validation_tokens == len(text)
    assert report.tokens.bigrams_possible == len(set(text)) ** 2
    assert report.tokens.bigrams_present == len(set(pairwise(text)))


def test_planted_duplicates_are_found_where_they_stand(write: Write) -> None:
    parts = paragraphs(60)
    parts[30] = parts[10]
    near = parts[20].split(" ")
    near[15] = "elephant"
    parts[40] = " ".join(near)
    report = check(write("twice.txt", "\n\n".join(parts) + "\n"))
    lines, whole = report.duplicates.exact
    assert (whole.unit, whole.units, whole.repeated) == ("paragraph", 60, 1)
    assert whole.worst[0].count == 2
    assert [place.line for place in whole.worst[0].places] == [10 * 6 + 1, 30 * 6 + 1]
    assert whole.worst[0].quote.startswith(parts[10][:40])
    assert lines.repeated == 5 + 4  # and four of the five lines of the one that is nearly the same
    close = report.duplicates.near
    assert (close.unit, close.repeated) == ("paragraph", 1)
    pair = close.worst[0]
    assert (pair.first.line, pair.second.line) == (20 * 6 + 1, 40 * 6 + 1)
    one, other = ({text[i : i + 8] for i in range(len(text) - 7)} for text in (parts[20], parts[40]))
    assert pair.resemblance == pytest.approx(len(one & other) / len(one | other), abs=1e-9)
    assert any(finding.look and "paragraph" in finding.sentence for finding in findings(report))


def test_documents_are_compared_where_there_are_several(write: Write) -> None:
    for i, text in enumerate(paragraphs(30)):
        write(f"texts/{i:02}.txt", text + "\n")
    write("texts/12.txt", paragraphs(30)[3] + "\n")
    write("texts/25.txt", paragraphs(30)[7].replace(".", "!", 1) + "\n")
    report = check(Path("texts"))
    documents = report.duplicates.exact[-1]
    assert (documents.unit, documents.units, documents.repeated) == ("document", 30, 1)
    assert [str(place) for place in documents.worst[0].places] == ["03.txt, line 1", "12.txt, line 1"]
    near = report.duplicates.near
    assert (near.unit, near.repeated) == ("document", 1)
    assert (near.worst[0].first.document, near.worst[0].second.document) == ("07.txt", "25.txt")
    assert report.text.lines == 150


def test_planted_leakage_is_found_where_it_stands(write: Write) -> None:
    parts = paragraphs(100)
    copied = parts[33][20:220]
    parts[97] = copied + "\n" + parts[97]
    text = "\n\n".join(parts) + "\n"
    report = check(write("leak.txt", text))
    split_point = report.tokens.training_tokens
    windows = {text[i : i + 50] for i in range(split_point - 49)}
    expected = [text[i : i + 50] in windows for i in range(split_point, len(text) - 49)]
    leak = report.leakage
    assert (leak.windows, leak.leaked) == (len(expected), sum(expected))
    assert sum(expected) >= 151
    assert leak.share == sum(expected) / len(expected)
    passage = leak.longest[0]
    assert 200 <= passage.characters <= 203
    assert passage.validation.line == text[: text.index(copied, split_point)].count("\n") + 1
    assert passage.training.line == 33 * 6 + 1
    assert passage.quote.startswith(copied[:100])


def test_the_size_of_pieces_changes_nothing(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = paragraphs(40)
    parts[-1] = parts[5]
    path = write("leak.txt", "\n\n".join(parts))
    normal = check(path)
    assert normal.leakage.leaked > 100
    for module in (text_module, characters_module, leakage_module, duplicates_module):
        monkeypatch.setattr(module, "PIECE", 1000)
    assert check(path).to_dict() == normal.to_dict()


def test_documents_longer_than_a_piece(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are compared by a part of their windows, and a line that never ends is cut."""
    monkeypatch.setattr(duplicates_module, "PIECE", 1000)
    monkeypatch.setattr(text_module, "PIECE", 1000)
    parts = ["\n".join(paragraphs(20, seed)) for seed in range(8)]
    parts[6] = parts[2].replace("candle", "candles", 3)
    parts[7] = " ".join(paragraphs(20, 9)).replace("\n", " ")
    for i, part in enumerate(parts):
        write(f"texts/{i}.txt", part)
    near = check(Path("texts")).duplicates.near
    assert [(pair.first.document, pair.second.document) for pair in near.worst] == [("2.txt", "6.txt")]
    assert near.complete


def test_window_hashes_tell_windows_apart() -> None:
    ids = np.random.default_rng(0).integers(0, 3, 5000).astype(np.uint16)
    for length in (1, 2, 7, 8, 50):
        hashes = window_hashes(ids, length)
        windows = {bytes(ids[i : i + length]) for i in range(len(ids) - length + 1)}
        assert len(hashes) == len(ids) - length + 1
        assert len(np.unique(hashes)) == len(windows)
        assert hashes[123] == window_hashes(ids[123 : 123 + length], length)[0]
    assert len(window_hashes(ids[:10], 50)) == 0


def test_planted_odd_characters_are_found_where_they_stand(write: Write) -> None:
    lines = "\n\n".join(paragraphs(40)).split("\n")
    planted = {
        10: ("\ufffd", "replacement character"),
        20: ("\ufeff", "byte-order mark inside"),
        30: ("\x07", "control character"),
        40: ("\u00ad", "invisible character"),
        50: ("\ue000", "unassigned or private character"),
        60: ("cafe\u0301", "not normalized"),
        70: ("la premiÃ¨re fois dÃ©jÃ  vu", "garbled encoding"),
    }
    for line, (what, _) in planted.items():
        lines[line - 1] += what
    report = check(write("odd.txt", "\n".join(lines)))
    assert {o.kind: (o.count, [place.line for place in o.places]) for o in report.text.oddities} == {
        kind: (1, [line]) for line, (_, kind) in planted.items()
    }
    garbled = next(o for o in report.text.oddities if o.kind == "garbled encoding")
    assert "première" in garbled.examples[0]
    rare = {c.character: c for c in report.text.rarest}
    assert rare["\x07"].count == 1
    assert rare["\x07"].places[0].line == 30
    assert rare["\x07"].code == "U+0007"
    assert [c.count for c in report.text.rarest] == sorted(c.count for c in report.text.rarest)


def test_line_ends(write: Write) -> None:
    text = "\n\n".join(paragraphs(20))
    assert kinds(check(write("dos.txt", text.replace("\n", "\r\n")))) == {"carriage returns"}
    mixed = check(write("mixed.txt", text.replace("\n", "\r\n", 7)))
    (oddity,) = mixed.text.oddities
    assert (oddity.kind, oddity.count) == ("mixed line ends", 7)


@pytest.mark.parametrize("honest", ["« CAFÉ » – il a dit « NOËL » à 5 °C, naïveté", "Größe “quoted” – 3 × 4 £5 ½ €"])
def test_text_that_is_meant_is_not_called_garbled(honest: str, write: Write) -> None:
    assert kinds(check(write("honest.txt", (honest + "\n") * 30))) == set()


GREEK = "η θάλασσα ήταν ήσυχη το πρωί και τα καΐκια γύριζαν από το νησί με ψάρια και αλάτι στα δίχτυα τους"
JAPANESE = "春の朝、川のほとりで老人が静かに釣りをしていた。風はなく、水面には山の影が映っている。"
ARABIC = "في الصباح الباكر كان الصياد يجلس قرب النهر وينظر إلى الماء الهادئ تحت ظل الجبل الكبير"


@pytest.mark.parametrize(
    ("text", "script", "language"),
    [(GREEK, "Greek", "el"), (JAPANESE, "Hiragana", "ja"), (ARABIC, "Arabic", "ar")],
)
def test_other_scripts(text: str, script: str, language: str, write: Write) -> None:
    words, joined = (text.split(" "), " ") if " " in text else (list(text), "")
    rng = random.Random(3)
    lines = [joined.join(rng.choices(words, k=12 if joined else 40)) for _ in range(300)]
    lines[280:284] = lines[100:104]
    lines[99] += "。"  # or the end of the line before might be the same too
    report = check(write("text.txt", "\n".join(lines) + "\n"))
    assert next(name for name in report.text.scripts if name != "Common") == script
    assert next(iter(report.text.languages)) == language
    assert report.text.oddities == ()
    assert report.duplicates.exact[0].repeated == 4
    assert report.leakage.longest[0].training.line == 101
    assert report.leakage.longest[0].validation.line == 281
    assert report.milestones.models[2].loss < report.milestones.models[0].loss
    assert report.text.bytes == len(("\n".join(lines) + "\n").encode())


@pytest.mark.parametrize("text", ["", "a", "ab"])
def test_a_text_that_is_too_short_is_one_sentence(text: str, write: Write) -> None:
    with pytest.raises(ValueError, match=r"(is empty|too few)") as caught:
        check(write("short.txt", text))
    assert len(str(caught.value).splitlines()) == 1


def test_json_is_the_same_each_time_and_holds_every_part(write: Write) -> None:
    path = write("text.txt", "\n\n".join(paragraphs(50)))
    first, second = (json.dumps(check(path).to_dict(), ensure_ascii=False) for _ in range(2))
    assert first == second
    value = json.loads(first)
    assert list(value) == [
        "name", "documents", "text", "tokens", "milestones", "duplicates", "leakage", "recommendation",
    ]  # fmt: skip
    assert value["milestones"]["smoothing"] == "interpolated Witten-Bell"
    assert {"order", "name", "loss", "bits_per_byte"} == value["milestones"]["models"][0].keys()
    assert value["text"]["rarest"][0]["places"][0].keys() == {"document", "line"}


def test_the_page_escapes_the_text(write: Write) -> None:
    evil = "<script>alert('evil & more')</script><img src=x onerror=alert(1)>"
    parts = paragraphs(50)
    for i in (10, 20, 48):
        parts[i] = evil + "\n" + evil + "\n" + parts[10]
    report = check(write("<b>evil.txt", "\n\n".join(parts)))
    html = page(report)
    assert "<script" not in html
    assert "<img" not in html
    assert "<b>evil" not in html
    assert "&lt;script&gt;" in html
    assert "http" not in html.replace("http-equiv", "")
    for model in report.milestones.models:
        assert f"{model.loss:.3f}" in html
