"""Runs that were trained further, in the studio: their page, their place in the list, and chats with them."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pages import EVIL, Open, Server, address_of, opened_pages, started

import groundling
from groundling import storage
from groundling.config import Sampling
from groundling.config.methods import GrpoSettings
from groundling.data.conversations import Message
from groundling.data.tokenizers.chat import ChatTokenizer
from tiny import TINY

pytest.importorskip("nicegui", reason="needs the extra studio")

from groundling.web.studio.charts import comparison
from groundling.web.studio.studio import Studio
from groundling.web.studio.writing import write


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, prose: str) -> Iterator[Server]:
    """The studio with the runs `first`, and `chatty` and `rewarded`, which descend from it."""
    folder = tmp_path_factory.mktemp("studio")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GROUNDLING_CACHE", str(folder / "cache"))
        (folder / "prose.txt").write_text(prose, encoding="utf-8")
        process = started(folder, "studio")
        groundling.train(folder / "prose.txt", name="first", out=folder / "runs", on_event=lambda _: None, **TINY)
        tuned(folder)
        yield Server(address_of(process), folder / "runs", process)
        process.kill()
        process.wait()


@pytest.fixture
def open_page(browser: Any, server: Server) -> Iterator[Open]:
    yield from opened_pages(browser, server)


def tuned(folder: Path) -> None:
    """`chatty`, fine-tuned from `first`, and `rewarded`, a copy with the files of a GRPO run."""
    runs, chats = folder / "runs", folder / "chats.jsonl"
    chat = {"prompt": "How are you?", "completion": "Very well."}
    chats.write_text(
        "".join(json.dumps(chat | {"prompt": f"{'so ' * i}how"}) + "\n" for i in range(9)), encoding="utf-8"
    )
    groundling.sft("first", chats, name="chatty", steps=3, out=runs, on_event=lambda _: None, device="cpu")
    shutil.copytree(runs / "chatty", runs / "rewarded")
    record = json.loads((runs / "rewarded" / "config.json").read_text(encoding="utf-8"))
    record["settings"] |= {"task": "grpo", "method": GrpoSettings(task="reverse").__dict__}
    storage.write_json(runs / "rewarded" / "config.json", record)
    result = groundling.load("rewarded", out=runs).result
    assert result is not None
    storage.write_json(runs / "rewarded" / "result.json", result | {"best_validation_loss": 0.55, "metric": "accuracy"})
    lines = groundling.load("rewarded", out=runs).metrics()
    for line in lines:
        if line["event"] == "step":
            line["figures"] = {"reward": 0.5, "signal": 1.0, "entropy": 0.1}
        if line["event"] == "evaluation":
            line |= {"metric": "accuracy", "validation_loss": 0.25 + line["step"] / 10}
    replies = [{"event": "replies", "step": step, "groups": [
        {"prompt": f"step {step}", "replies": [EVIL, "right"], "rewards": [0.0, 1.0]}]} for step in (0, 3)]  # fmt: skip
    for name, content in (("metrics", lines), ("samples", replies)):
        path = runs / "rewarded" / f"{name}.jsonl"
        path.write_text("".join(json.dumps(line) + "\n" for line in content), encoding="utf-8")


def test_runs_are_chatted_with_side_by_side(open_page: Open, server: Server) -> None:
    """A tuned run answers in its template; a pretrained one continues the text."""
    page = open_page("/chat?run=chatty")
    page.get_by_role("button", name="Add a run").click()
    talks = page.locator(".talk")
    talks.nth(1).wait_for()
    second = talks.nth(1).get_by_label("Run")
    second.click()
    page.get_by_role("option", name="first", exact=True).click()
    page.get_by_role("slider", name="Temperature").focus()
    page.keyboard.press("Home")
    page.get_by_role("slider", name="Max tokens").focus()
    page.keyboard.press("Home")
    page.get_by_label("Message").fill("how")
    page.keyboard.press("Enter")
    run = groundling.load("chatty", out=server.runs)
    assert isinstance(run.tokenizer, ChatTokenizer)
    prompt = run.tokenizer.render([Message("user", "how")], add_generation_prompt=True).ids
    wanted = "".join(token.text for token in write(run, prompt, Sampling(temperature=0.0, top_k=0), 10))
    first = groundling.load("first", out=server.runs).generate("how", max_new_tokens=10, temperature=0.0, top_k=0)
    for talk, text in ((talks.nth(0), wanted), (talks.nth(1), first)):
        talk.get_by_text(re.compile(r"^\d+ tokens")).wait_for()
        assert talk.locator(".said").inner_text() == "how"
        assert talk.locator(".token").all_text_contents() == ["↵\n" if c == "\n" else c for c in _tokens(text)]
    page.get_by_label("Message").fill("so how")
    page.keyboard.press("Enter")
    page.wait_for_function("document.querySelectorAll('.talk .strip').length === 4")
    page.get_by_role("button", name="New conversation").click()
    page.wait_for_function("document.querySelectorAll('.talk .strip').length === 0")


def _tokens(text: str) -> list[str]:
    """The tokens of a character model, with the end of a turn as one."""
    return re.findall(r"<\|\w+\|>|.", text, re.DOTALL)


def test_the_page_of_a_run_with_rewards_shows_its_replies(open_page: Open, server: Server) -> None:
    page = open_page("/runs/rewarded")
    page.locator(".chart[data-chart=score]").wait_for()
    assert "best 55% at step 3" in page.locator(".chart[data-chart=score] figcaption").inner_text()
    assert page.locator(".chart[data-chart=entropy]").count() == 1
    page.get_by_text("Pretrained as first on").wait_for()
    page.locator(".group .prompt", has_text="step 3").wait_for()
    assert page.locator(".group .reply").all_inner_texts() == ["1\nright", f"0\n{EVIL}"]
    page.locator("section:has(> .card .group)").get_by_role("slider", name="Training time").focus()
    page.keyboard.press("ArrowLeft")
    page.locator(".group .prompt", has_text="step 0").wait_for()
    assert page.evaluate("window.evil === undefined")
    page.goto(f"{server.address}/")
    row = page.locator(".run", has=page.get_by_role("link", name="rewarded", exact=True))
    row.get_by_text("accuracy 55%").wait_for()
    assert row.locator(".about").inner_text().startswith("grpo of first · chats")


def test_runs_are_compared_by_the_figures_of_their_method(server: Server) -> None:
    studio = Studio(server.runs)
    chart, _, missing = comparison(studio, ["first", "rewarded"], "accuracy", "step")
    assert chart is not None
    assert [(curve.name, curve.x[-1], curve.y[-1]) for curve in chart.curves] == [("rewarded", 3.0, 0.55)]
    assert missing == ["first"]
    chart, _, missing = comparison(studio, ["first", "rewarded"], "validation loss", "step")
    assert chart is not None
    assert [curve.name for curve in chart.curves] == ["first"]
    assert "rewarded" in studio.writers()


def test_it_fits_a_phone(open_page: Open) -> None:
    page = open_page("/runs/rewarded", 390)
    page.locator(".group").wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
