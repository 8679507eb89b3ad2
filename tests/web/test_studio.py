"""The studio in a real browser: one server, as the command line starts it, and one browser for all tests."""

from __future__ import annotations

import json
import re
import shutil
import signal
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pages import EVIL, Open, Server, address_of, opened_pages, started

import groundling
from groundling import storage
from groundling.__main__ import main
from tiny import TINY

pytest.importorskip("nicegui", reason="needs the extra studio")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, prose: str) -> Iterator[Server]:
    """The studio with three runs: `first`, `second`, and one that says EVIL wherever a run can say something."""
    folder = tmp_path_factory.mktemp("studio")
    runs = folder / "runs"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GROUNDLING_CACHE", str(folder / "cache"))
        (folder / "prose.txt").write_text(prose, encoding="utf-8")
        process = started(folder, "studio")
        groundling.train(folder / "prose.txt", name="first", out=runs, on_event=lambda _: None, **TINY)
        shutil.copytree(runs / "first", runs / "second")
        hostile(runs)
        yield Server(address_of(process), runs, process)
        if process.poll() is None:
            process.kill()
        process.wait()


def hostile(runs: Path) -> None:
    """A copy of `first` whose folder, text and samples are called EVIL, and whose validation part leaks."""
    folder = runs / EVIL.replace("/", "∕")
    shutil.copytree(runs / "first", folder)
    record = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    record["corpus"]["name"] = record["settings"]["corpus"] = EVIL
    storage.write_json(folder / "config.json", record)
    metrics = (folder / "metrics.jsonl").read_text(encoding="utf-8")
    (folder / "metrics.jsonl").write_text(re.sub('"leakage": [^,}]+', '"leakage": 0.5', metrics), encoding="utf-8")
    with (folder / "samples.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps({"event": "sample", "step": 40, "prompt": EVIL, "text": EVIL, "copied_share": 1.0,
                               "longest_copy": 40, "copied_spans": [[5, 45]]}) + "\n")  # fmt: skip


@pytest.fixture
def open_page(browser: Any, server: Server) -> Iterator[Open]:
    yield from opened_pages(browser, server)


def test_a_run_is_started_watched_and_paused(open_page: Open, server: Server, text_file: Path) -> None:
    page = open_page("/new")
    page.set_input_files("input[type=file]", text_file)
    page.wait_for_function("document.querySelector('.form input').value.endsWith('texts/prose.txt')")
    page.get_by_label("Minutes").fill("0.5")
    page.get_by_role("button", name="Start").click()
    page.wait_for_url("**/runs/prose")
    state = page.locator(".state")
    page.get_by_text(re.compile(r"Training: .*step \d+ of about .* left")).wait_for()
    page.locator(".chart[data-chart=loss] path.training").first.wait_for()
    assert page.get_by_text("memory of this run").is_visible()
    page.get_by_role("button", name="Pause").click()
    page.get_by_text(re.compile(r"Paused at step \d+")).wait_for()
    assert page.get_by_role("button", name="Resume").is_visible()
    assert groundling.load("prose", out=server.runs).metrics()[-1]["event"] == "paused"
    assert "Paused" in state.inner_text()
    page.get_by_role("link", name="groundling").click()
    row = page.locator(".run", has=page.get_by_role("link", name="prose", exact=True))
    row.get_by_text(re.compile(r"^step \d+ of about [\d,]+$")).wait_for()


def test_the_slider_goes_through_the_samples(open_page: Open, server: Server) -> None:
    page = open_page("/runs/first")
    samples = groundling.load("first", out=server.runs).samples()
    sample = page.locator(".sample")
    shown = samples[-1]["text"].strip()
    page.wait_for_function("text => document.querySelector('.sample')?.textContent.includes(text)", arg=shown)
    page.get_by_role("slider", name="Training time").focus()
    page.keyboard.press("ArrowLeft")
    page.get_by_text(f"step {samples[-2]['step']:,} ·").wait_for()
    page.wait_for_function(
        "text => document.querySelector('.sample').textContent.includes(text)", arg=samples[-2]["text"].strip()
    )
    assert sample.inner_text()
    # The curves can be read at any step.
    page.locator("[data-chart=loss]").scroll_into_view_if_needed()
    box = page.locator("[data-chart=loss] .plot").bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 30)
    assert "at step 20" in page.inner_text("[data-chart=loss] figcaption")
    assert page.get_by_text(re.compile(r"^Best loss \d\.\d{3} nats per token: ")).is_visible()


def test_runs_are_searched_and_compared(open_page: Open) -> None:
    page = open_page("/")
    page.get_by_label("Search").fill("prose nano")
    page.get_by_role("checkbox", name="Compare first").click()
    page.get_by_role("checkbox", name="Compare second").click()
    page.locator("[data-chart=compared] .key").nth(1).wait_for()
    page.get_by_role("button", name="by time").click()
    page.locator("[data-chart=compared]").wait_for()
    page.get_by_label("Search").fill("second")
    page.get_by_role("link", name="first").wait_for(state="detached")
    assert page.locator(".run").count() == 1


def test_it_writes_and_branches(open_page: Open, server: Server) -> None:
    page = open_page("/playground?run=first")
    page.get_by_label("Prompt").fill("The ")
    page.get_by_label("Seed").fill("5")
    page.get_by_role("button", name="Generate").click()
    said = page.locator(".writer").first.get_by_role("status")
    said.get_by_text(re.compile("300 tokens, seed 5; .* % copied, longest copied span")).wait_for()
    strip = page.locator(".strip").first
    written = groundling.load("first", out=server.runs).generate("The ", max_new_tokens=300, seed=5)
    assert strip.inner_text().replace("↵\n", "\n").strip() == ("The " + written).strip()

    tokens = strip.locator(".token")
    tokens.nth(10).hover()
    choices = page.locator(".choices button")
    assert choices.count() == 10
    assert page.locator(".choices .taken").count() <= 1
    tokens.nth(10).click()
    page.locator("h1").click()
    assert choices.count() == 0
    # The same by keyboard: along the tokens, into the choices, and one of them taken.
    tokens.nth(0).focus()
    for key in ("ArrowRight", "ArrowRight", "ArrowRight", "ArrowDown", "ArrowDown"):
        page.keyboard.press(key)
    other = page.evaluate("document.activeElement.querySelector('.what').textContent")
    before = [tokens.nth(i).text_content() for i in range(3)]
    page.keyboard.press("Enter")
    said.get_by_text(re.compile("300 tokens, seed 5; .* % copied, longest copied span")).wait_for()
    page.wait_for_function("document.querySelectorAll('.writer .token').length === 300")
    assert [tokens.nth(i).text_content() for i in range(3)] == before
    assert tokens.nth(3).text_content() == {"␣": " ", "↵": "↵\n"}.get(other, other)


def test_two_models_write_side_by_side(open_page: Open) -> None:
    page = open_page("/playground?run=first")
    page.get_by_label("Compare with").click()
    page.get_by_role("option", name="second").click()
    page.get_by_role("slider", name="Max tokens").focus()
    page.keyboard.press("Home")
    page.get_by_role("button", name="Generate").click()
    for column in (0, 1):
        page.locator(".writer").nth(column).get_by_text("10 tokens, seed").wait_for()
        assert page.locator(".strip").nth(column).locator(".token").count() == 10


def test_the_inside_is_read_by_keyboard(open_page: Open, server: Server) -> None:
    page = open_page("/inside?run=first")
    page.locator(".square td").first.wait_for()
    prompt = groundling.load("first", out=server.runs).example_prompt(64)  # a word of the text
    assert page.get_by_label("Prompt").input_value() == prompt != ""
    page.get_by_label("Prompt").fill("The one")
    page.keyboard.press("Enter")
    attention = page.locator(".square")
    # The lower triangle of 7 × 7, once it has taken the place of that of the prompt before.
    page.wait_for_function("document.querySelectorAll('.square tbody td').length === 28")
    attention.locator("td[tabindex='0']").focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowRight")
    assert attention.locator(".description").inner_text().startswith("h (2) attends ")
    page.get_by_role("slider", name="Layer").focus()
    page.keyboard.press("ArrowRight")
    page.get_by_text("2 of 2").wait_for()
    guesses = page.get_by_role("grid", name="Most likely next token after each layer")
    assert guesses.get_by_role("rowheader").all_inner_texts() == ["layer 2", "layer 1", "embedding"]
    assert page.locator(".near .share").count() == 10


def test_what_a_text_says_stays_text(open_page: Open, server: Server) -> None:
    page = open_page("/")
    name = EVIL.replace("/", "∕")
    page.get_by_role("link", name=name).wait_for()
    page.get_by_text(EVIL, exact=False).first.wait_for()
    page.get_by_role("checkbox", name=f"Compare {name}").click()
    page.locator("[data-chart=compared]").wait_for()
    page.get_by_role("link", name=name).click()
    page.locator(".sample mark").first.wait_for()
    assert page.locator(".sample").text_content() == EVIL + EVIL
    assert page.locator(".finding code").first.text_content().startswith("groundling inspect ")
    assert page.evaluate("window.evil === undefined")
    page.goto(f"{server.address}/runs/{'%3Cimg%20src=x%20onerror=alert(1)%3E'}")
    page.get_by_text("There is no run '<img src=x onerror=alert(1)>'").wait_for()
    assert page.evaluate("window.evil === undefined")


@pytest.mark.parametrize("path", ["/", "/new", "/runs/first", "/chat", "/playground", "/inside"])
def test_it_fits_a_phone(open_page: Open, path: str) -> None:
    page = open_page(path, 390)
    page.locator("main h1").wait_for()
    page.wait_for_timeout(300)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


@pytest.mark.parametrize(
    "headers", [{"Host": "evil.example"}, {"Origin": "http://evil.example"}, {"Origin": "null"}], ids=str
)
def test_pages_of_others_are_refused(server: Server, headers: dict[str, str]) -> None:
    for path in ("/", "/socket.io/?EIO=4&transport=polling", "/_nicegui_ws/socket.io/?EIO=4&transport=polling"):
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(urllib.request.Request(server.address + path, headers=headers), timeout=10)
        assert refused.value.code == 403


def test_pages_say_what_they_may_do(server: Server) -> None:
    with urllib.request.urlopen(server.address, timeout=10) as answer:
        told = answer.headers["Content-Security-Policy"]
    assert "default-src 'none'" in told and "frame-ancestors 'none'" in told
    assert "'unsafe-inline'" not in told.split("style-src")[0]


def test_it_stands_on_the_port_of_serve(open_page: Open, server: Server, text_file: Path) -> None:
    process = started(server.runs.parent, "serve", "first", "--studio")
    try:
        address = address_of(process)
        assert address.endswith("/studio")
        page = open_page("/", at=address)
        page.get_by_role("link", name="first").click()
        page.wait_for_url(f"{address}/runs/first")
        page.get_by_role("button", name="Generate text").click()
        page.wait_for_url(f"{address}/playground?run=first")
        page.get_by_role("slider", name="Max tokens").focus()
        page.keyboard.press("Home")
        page.get_by_role("button", name="Generate").click()
        page.locator(".writer").get_by_text("10 tokens, seed").wait_for()
        page.goto(f"{address}/new")
        big = text_file.with_name("big.txt")  # larger than what the API takes
        big.write_text("To be, or not to be.\n" * 100_000, encoding="utf-8")
        page.set_input_files("input[type=file]", big)
        page.wait_for_function("document.querySelector('.form input').value.endsWith('texts/big.txt')")
        page.close()  # before the server, which it would miss
        # The API is there as ever: its texts, its errors, its bounds.
        root = address.removesuffix("/studio")
        assert ask(root, "/v1/completions", {"prompt": "The ", "max_tokens": 5})["usage"]["completion_tokens"] == 5
        for path, body, status in (("/v1/nothing", {}, 404), ("/v1/completions", {"prompt": "x" * 2**20}, 413)):
            with pytest.raises(urllib.error.HTTPError) as refused:
                ask(root, path, body)
            assert refused.value.code == status
            assert json.load(refused.value)["error"]["type"] == "invalid_request_error"
    finally:
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=15) == 0


def ask(root: str, path: str, body: dict[str, Any]) -> Any:
    request = urllib.request.Request(
        root + path, json.dumps(body).encode(), {"Content-Type": "application/json"}, method="POST"
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)


@pytest.mark.parametrize("wish", [["--api-key", "secret"], ["--api-key", "secret", "--host", "0.0.0.0"]], ids=str)
def test_on_the_port_of_serve_it_has_no_key(server: Server, wish: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["serve", "first", "--studio", "--port", "0", *wish, "--out", str(server.runs)])
    assert "--studio needs a loopback --host and no API key" in capfd.readouterr().err


def test_ctrl_c_ends_it(server: Server) -> None:
    """The last test: it takes the server with it."""
    server.process.send_signal(signal.SIGINT)
    assert server.process.wait(timeout=15) == 0
