"""The pages in a real browser, opened from the disk."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from handmade import Written

import groundling
from groundling.reporting.run_page import run_page

EVIL = "</script><script>window.evil = 1</script><img src=x onerror='window.evil = 1'>"

Open = Callable[..., Any]


@pytest.fixture
def open_page(browser: Any) -> Iterator[Open]:
    """Opens a file; fails at the end if anything went wrong in it, or if it wanted anything else."""
    context = browser.new_context()
    trouble: list[str] = []

    def open_page(path: Path, width: int = 1200) -> Any:
        page = context.new_page()
        page.set_viewport_size({"width": width, "height": 900})
        page.on("console", lambda message: trouble.append(message.text))
        page.on("pageerror", lambda error: trouble.append(str(error)))
        page.on("request", lambda request: request.url == path.as_uri() or trouble.append(request.url))
        page.goto(path.as_uri())
        return page

    yield open_page
    context.close()
    assert trouble == []


@pytest.fixture
def report(written: Written, tmp_path: Path) -> Path:
    """Three samples, the first hostile, the last one copied."""
    written.checked().sample(0, EVIL, copied_share=0.0, longest_copy=3, copied_spans=[])
    written.sample(100, "half learned", copied_share=0.0, longest_copy=5, copied_spans=[])
    written.sample(200, "well learned", prompt="So: ", copied_share=1.0, longest_copy=12, copied_spans=[[0, 12]])
    path = tmp_path / "report.html"
    path.write_text(run_page(written.facts()), encoding="utf-8")
    return path


def test_the_slider_goes_through_time_by_keyboard(open_page: Open, report: Path) -> None:
    page = open_page(report)
    assert page.inner_text("#sample") == "So: well learned"
    assert page.inner_text("#sample mark") == "well learned"
    page.focus("#time")
    page.keyboard.press("ArrowLeft")
    assert page.inner_text("#sample").strip() == "half learned"
    assert "step 100 · 50 s · validation loss 3.062" in page.inner_text("#said")
    assert page.get_attribute("#time", "aria-valuetext") == page.inner_text("#said")
    # The curves follow: what they say is what they were at that step.
    assert page.inner_text("#loss figcaption").split("validation")[1].split()[0] == "3.062"
    assert page.inner_text("#loss [data-step]") == "at step 100"
    page.keyboard.press("Home")
    assert page.inner_text("#sample").strip() == EVIL
    page.keyboard.press("End")
    assert page.inner_text("#sample") == "So: well learned"
    assert page.evaluate("window.evil === undefined")


def test_it_plays(open_page: Open, report: Path) -> None:
    page = open_page(report)
    page.click("#play")
    assert page.inner_text("#play") == "Pause"
    assert page.inner_text("#sample").strip() == EVIL
    page.get_by_text("half learned").wait_for()
    page.get_by_role("button", name="Play").wait_for()
    assert page.inner_text("#sample") == "So: well learned"


def test_pointing_at_a_curve_reads_it(open_page: Open, report: Path) -> None:
    page = open_page(report)
    box = page.locator("#loss .plot").bounding_box()
    page.mouse.move(box["x"] + box["width"] / 4, box["y"] + 40)
    assert page.inner_text("#loss [data-step]") == "at step 50"
    assert page.is_visible("#loss .cursor")
    page.mouse.move(5, 5)
    assert page.inner_text("#loss [data-step]") == ""


@pytest.mark.parametrize("width", [390, 1200])
def test_it_fits(open_page: Open, report: Path, width: int) -> None:
    page = open_page(report, width)
    page.evaluate("document.querySelectorAll('details').forEach(part => { part.open = true; })")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.locator("#loss .name").count() == 4


def test_the_page_of_losses_works_too(open_page: Open, text_file: Path, tiny: dict[str, Any], tmp_path: Path) -> None:
    run = groundling.train(text_file, name="first", on_event=lambda _: None, **tiny | {"steps": 10})
    run.evaluate(html=tmp_path / "losses.html", html_tokens=50)
    page = open_page(tmp_path / "losses.html", 390)
    page.hover("#text b:nth-of-type(7)")
    assert page.inner_text("#tip").startswith("loss ")


def test_rewarded_replies_have_a_slider(open_page: Open, tmp_path: Path) -> None:
    run = Written.tuned("grpo", steps=2)
    for step, accuracy in ((0, 0.25), (2, 0.5)):
        run.step(step + 1, 0.1, figures={"reward": accuracy, "signal": 0.5})
        run.scored(step, "accuracy", accuracy, best=step == 2)
        run.replied(step, (f"prompt {step}", {"good": 1.0, EVIL: 0.0}))
    path = tmp_path / "report.html"
    path.write_text(run_page(run.facts()), encoding="utf-8")
    page = open_page(path)
    assert page.inner_text("#groups .prompt") == "prompt 2"
    page.focus("#when")
    page.keyboard.press("ArrowLeft")
    assert page.inner_text("#groups .prompt") == "prompt 0"
    assert page.locator("#groups .reply").all_inner_texts() == ["1\ngood", f"0\n{EVIL}"]
    assert page.inner_text("#told") == page.get_attribute("#when", "aria-valuetext")
    assert "25%" in page.inner_text("#score figcaption")  # the curves follow
    assert page.evaluate("window.evil === undefined")
