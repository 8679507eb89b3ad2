"""A run as a web page: what a real browser computes in it is what groundling computes."""

from __future__ import annotations

import copy
import dataclasses
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import groundling
from groundling.__main__ import main
from groundling.config import ModelSettings, Sampling
from groundling.data.conversations import Message
from groundling.data.tokenizers.base import ByteTokenizer, CharTokenizer, Tokenizer
from groundling.data.tokenizers.bpe import BpeTokenizer
from groundling.data.tokenizers.chat import ChatTokenizer
from groundling.data.tokenizers.huggingface import HuggingFaceTokenizer
from groundling.inference.engine import generate
from groundling.model.gpt import GPT
from groundling.run.run import Run
from groundling.run.share import facts, share
from groundling.run.share.check import check
from groundling.run.share.facts import About
from groundling.run.share.share import shared_page
from groundling.run.share.weights import rounded, unpack
from tiny import TINY
from untrained import untrained

EVIL = "</script><script>window.evil = 1</script><img src=x onerror='window.evil = 1'>"
ODD = "don't we'LL  \n\n x²\u00a0y 語😀 12ab\u0085c\ufeff d\x1c e\u2028 f\u3000g  \n"
SMALL: dict[str, Any] = {"block_size": 16, "n_layer": 2, "n_embd": 20}
MODERN: dict[str, Any] = SMALL | {"norm": "rmsnorm", "position": "rope", "mlp": "swiglu", "head_size": 6}
MODELS = {
    "gpt2-char": ModelSettings(**SMALL, n_head=2, sliding_window=5, sliding_layers="SF"),
    "gpt2-byte": ModelSettings(**SMALL, n_head=5, n_kv_head=1, tie_head=False, norm_eps=1e-3, mlp_bias="off"),
    "qwen3-bpe": ModelSettings(**MODERN, n_head=4, n_kv_head=2, rope_theta=500.0),
    "qwen3-char": ModelSettings(**MODERN, n_head=3, rope_scaling="yarn:4:8", mlp_size=13, tie_head=False),
    "llama-byte": ModelSettings(
        **MODERN, n_head=2, qk_norm=False, rope_scaling="llama3:8:1:4:16", attention_bias="qkv", mlp_bias="on"
    ),
}
READ = "ids => { const cache = model.newCache(); return ids.map(id => Array.from(model.read(id, cache))); }"
SLOWLY = "() => { const { memory } = model.head; memory.times = (...at) => timesInScript(memory.buffer, ...at); }"
GREEDY = """([ids, count]) => Array.from(generate(model, ids, { count, temperature: 0, topK: 0, seed: 0 }))
  .filter(step => !step.given).map(step => step.token)"""

LISTEN = """window.violations = [];
document.addEventListener("securitypolicyviolation", event => violations.push(event.violatedDirective));"""

Open = Callable[..., Any]


@pytest.fixture
def open_page(browser: Any, tmp_path: Path) -> Iterator[Open]:
    """Opens a page from the disk; fails at the end if anything went wrong in it, or if it wanted anything else."""
    context = browser.new_context()
    context.add_init_script(LISTEN)
    trouble: list[str] = []
    pages = []

    def open_page(content: str | Path, width: int = 1280) -> Any:
        path = tmp_path / "page.html" if isinstance(content, str) else content
        if isinstance(content, str):
            path.write_text(content, encoding="utf-8")
        page = context.new_page()
        page.set_viewport_size({"width": width, "height": 900})
        page.on("console", lambda message: trouble.append(message.text))
        page.on("pageerror", lambda error: trouble.append(str(error)))
        page.on("request", lambda request: request.url == path.as_uri() or trouble.append(request.url))
        page.goto(path.as_uri())
        pages.append(page)
        return page

    yield open_page
    found = [violation for page in pages for violation in page.evaluate("violations")]
    context.close()
    assert trouble == [] and found == []


@pytest.fixture(scope="module")
def tokenizers(prose: str) -> dict[str, Tokenizer]:
    bpe = BpeTokenizer.fit([prose], 300)
    return {"char": CharTokenizer(sorted(set(ODD + prose))), "byte": ByteTokenizer(), "bpe": bpe}


@pytest.fixture(scope="module")
def run(prose: str, tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("shared")
    (folder / "prose.txt").write_text(prose, encoding="utf-8", newline="")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GROUNDLING_CACHE", str(folder / "cache"))
        settings = TINY | {"steps": 20, "name": "mine", "out": folder}
        return groundling.train(folder / "prose.txt", on_event=lambda _: None, **settings)


def in_8_bits(model: GPT) -> GPT:
    exact = copy.deepcopy(model).cpu()
    exact.load_state_dict(rounded(exact.state_dict()))
    return exact


def greedy(model: GPT, ids: list[int], n: int) -> list[int]:
    return list(generate(model, ids, n, Sampling(temperature=0)))


def press(page: Any, **fields: Any) -> str:
    """Fill fields of the form, press the button, and wait for the text."""
    for name, value in fields.items():
        page.fill(f"#{name.replace('_', '-')}", str(value))
    page.click("#go")
    page.locator("#go:enabled").wait_for()
    return page.inner_text("#text").replace("↵", "")


@pytest.mark.parametrize("name", MODELS)
@torch.inference_mode()
def test_a_browser_computes_the_same(name: str, tokenizers: dict[str, Tokenizer], open_page: Open) -> None:
    tokenizer = tokenizers[name.split("-")[1]]
    model = untrained(MODELS[name], tokenizer.vocab_size, 0.2)
    content = shared_page(model, tokenizer, 1, About(name, 0))
    ids = np.random.default_rng(0).integers(model.vocab_size, size=17)
    exact, tokens = in_8_bits(model), torch.from_numpy(ids[None, :-1])
    page = open_page(content)
    theirs = np.array(page.evaluate(READ, ids[:-1].tolist()))
    assert np.abs(theirs - exact(tokens)[0].numpy()).max() < 1e-4
    # 8 bits change these logits, of which the largest are near 10, by a fiftieth of that at most.
    assert 1e-3 < np.abs(theirs - model(tokens)[0].numpy()).max() < 0.2
    assert check(content, model, ids[None], "random text").difference < 1e-4
    prompt = ids[:3].tolist()
    assert page.evaluate(GREEDY, [prompt, 200]) == greedy(exact, prompt, 200)
    assert page.evaluate("text => tokenizer.encode(text).ids", ODD) == tokenizer.encode(ODD, "skip")
    page.evaluate(SLOWLY)  # as where there is no WebAssembly
    assert np.abs(np.array(page.evaluate(READ, ids[:-1].tolist())) - theirs).max() < 1e-4
    long = [*ids.tolist(), *ids.tolist()]  # more than the context holds
    assert page.evaluate(GREEDY, [long, 20]) == greedy(exact, long, 20)


def test_words_are_cut_as_by_the_tokenizer(tokenizers: dict[str, Tokenizer], open_page: Open) -> None:
    bpe, rng = tokenizers["bpe"], np.random.default_rng(0)
    letters = [*"aZ'stré 0²\n\t\r .,-_", *map(chr, rng.integers(0x80, 0xD800, 200).tolist()), "\u0085", "\ufeff", "😀"]
    texts = ["".join(rng.choice(letters, 30)) for _ in range(200)]
    page = open_page(shared_page(GPT(MODELS["qwen3-bpe"], bpe.vocab_size), bpe, 1, About("x", 0)))
    assert page.evaluate("texts => texts.map(text => tokenizer.encode(text).ids)", texts) == list(
        map(bpe.encode, texts)
    )


def test_the_command_writes_a_page_that_works(
    run: Run, open_page: Open, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        main(["share", str(run.folder)])
    assert not end.value.code
    out, err = capfd.readouterr()
    file = run.folder / "exports" / "mine.html"
    assert f"({file.stat().st_size:,} bytes)" in out and "in 8 bits, the loss is" in err
    weights = sum(p.numel() for p in run.model.parameters())
    assert file.stat().st_size <= 1.5 * weights + 300_000
    with pytest.raises(FileExistsError, match="Choose another file with --to, or delete this one"):
        run.share()
    page = open_page(file)
    assert f"{weights:,}" in page.inner_text(".facts") and "bits per byte" in page.inner_text(".facts")
    assert "best" in page.inner_text("figcaption") and page.locator("figure path").count() > 1
    assert "Trained from scratch on prose" in page.inner_text("header")
    said = "The class"
    continued = run.tokenizer.decode(greedy(in_8_bits(run.model), run.tokenizer.encode(said), 40))
    assert press(page, prompt=said, temperature=0, count=40) == said + continued
    drawn = [press(page, temperature=1, seed=seed) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert "40 tokens in " in page.inner_text("#said") and "seed 2." in page.inner_text("#said")
    press(page, prompt="☃ and")
    assert "no token for it: ☃." in page.inner_text("#said")
    press(page, prompt="a" * 50)
    assert "at most 32 tokens at once" in page.inner_text("#said")


def test_tokens_show_what_else_was_likely(run: Run, open_page: Open, tmp_path: Path) -> None:
    page = open_page(run.share(tmp_path / "narrow.html"), width=390)
    press(page, prompt="The", temperature=0, count=30)
    shares = page.evaluate("[...document.querySelectorAll('#text b')].map(token => token.about.probability)")
    ids = run.tokenizer.encode("The") + greedy(in_8_bits(run.model), run.tokenizer.encode("The"), 28)
    with torch.inference_mode():
        logs = in_8_bits(run.model)(torch.tensor([ids]))[0].log_softmax(-1)
    expected = [float(logs[i, token].exp()) for i, token in enumerate(ids[1:])]
    assert np.allclose(shares[: len(expected)], expected, atol=1e-4)
    page.hover("#text b >> nth=4")
    assert page.inner_text("#tip").startswith("probability ") and page.inner_text("#tip").count("“") == 5
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.focus("#text b[tabindex='0']")
    page.keyboard.press("ArrowRight")
    assert page.locator("#text b.on").count() == page.locator("#text b >> nth=1").and_(page.locator(".on")).count() == 1
    assert page.locator("#text b[tabindex='0']").count() == 1
    page.keyboard.press("Escape")
    assert not page.is_visible("#tip")


def test_it_stops(open_page: Open, tokenizers: dict[str, Tokenizer]) -> None:
    model = GPT(ModelSettings(block_size=128, n_layer=6, n_head=4, n_embd=128), 257)
    page = open_page(shared_page(model, tokenizers["byte"], 1, About("x", 0)))
    page.evaluate("data.tokenizer.ends = []")
    page.fill("#count", "10000")
    page.click("#go")
    page.click("#stop")
    page.locator("#go:enabled").wait_for()
    assert int(page.inner_text("#said").split()[0]) < 10_000


def test_a_chat_gets_one_turn(open_page: Open) -> None:
    tokenizer = ChatTokenizer(CharTokenizer(sorted("\n abcdef")))
    model = untrained(MODELS["qwen3-char"], tokenizer.vocab_size, 0.2)
    page = open_page(shared_page(model, tokenizer, 1, About("chat", 0, is_chat=True)))
    ids = tokenizer.render([Message("user", "bad cab")], add_generation_prompt=True).ids
    own = greedy(in_8_bits(model), ids, 60)
    own = own[: next((i + 1 for i, id in enumerate(own) if id in tokenizer.end_ids), 60)]
    text = press(page, prompt="bad cab", temperature=0, count=60)
    assert text.replace("\n", "") == tokenizer.decode_with_markup(own).replace("\n", "")


def test_text_of_strangers_is_only_text(open_page: Open, tokenizers: dict[str, Tokenizer]) -> None:
    about = About(EVIL, 0, prompt=EVIL, origin=EVIL, standing=EVIL, figures=[(EVIL, EVIL)])
    content = shared_page(GPT(MODELS["gpt2-byte"], 257), tokenizers["byte"], 1, about)
    policy = re.search('Content-Security-Policy" content="([^"]*)"', content)
    assert policy and "default-src 'none'" in policy[1] and "'unsafe-inline'" not in policy[1]
    assert policy[1].count("'sha256-") == 2
    page = open_page(content)
    text = press(page, count=5)
    assert text.startswith(EVIL) and page.locator("img").count() == 0
    assert page.inner_text("h1") == EVIL
    assert page.evaluate("window.evil === undefined")


def test_nothing_else_runs_or_is_loaded(browser: Any, tokenizers: dict[str, Tokenizer], tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    path.write_text(shared_page(GPT(MODELS["gpt2-byte"], 257), tokenizers["byte"], 1, About("x", 0)), encoding="utf-8")
    page = browser.new_page()
    page.add_init_script(LISTEN)
    page.goto(path.as_uri())
    page.evaluate("document.body.append(Object.assign(document.createElement('script'), { text: 'window.evil = 1' }))")
    page.evaluate("fetch('http://127.0.0.1:9/').catch(() => {})")
    assert page.evaluate("window.evil === undefined")
    assert page.evaluate("violations") == ["script-src-elem", "connect-src"]
    page.close()


@pytest.mark.parametrize("wrong", ["a weight", "a setting"])
def test_a_page_that_computes_something_else_is_not_written(
    wrong: str, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if wrong == "a weight":
        packed = share.pack

        def pack(tensors: Any) -> Any:
            shapes, content = packed(tensors)
            return shapes, content[:-1000] + bytes(1000)

        monkeypatch.setattr(share, "pack", pack)
    else:
        made = share.model_facts
        monkeypatch.setattr(share, "model_facts", lambda settings: made(settings) | {"epsilon": 0.5})
    with pytest.raises(ValueError, match="does not compute the same as the model"):
        run.share(tmp_path / "wrong.html")
    assert not list(tmp_path.glob("*.html"))


def test_what_cannot_be_shared_is_refused(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "no.html"
    with monkeypatch.context() as patch:
        patch.setattr(share, "MOST_WEIGHTS", 1000)
        with pytest.raises(
            ValueError, match=r"and a page can hold 1,000\. For a larger model, use `groundling export "
        ):
            run.share(file)
    with monkeypatch.context() as patch:
        patch.setattr(facts, "_MODEL", ())
        with pytest.raises(ValueError, match="cannot be shared: the page's engine has no code for it"):
            run.share(file)
    definition = BpeTokenizer.fit(["a a a b b"], 260).to_huggingface()
    words = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}
    odd = HuggingFaceTokenizer(definition | {"pre_tokenizer": words})
    same = HuggingFaceTokenizer(definition)
    assert facts.tokenizer_facts(same, 1)["merges"]
    with pytest.raises(ValueError, match="its tokenizer is none of those that a page can compute"):
        facts.tokenizer_facts(odd, 1)
    assert not file.exists()


def test_a_run_without_its_text_is_checked_too(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GROUNDLING_CACHE", str(tmp_path / "none"))
    text, said = run.folder.parent / "prose.txt", list[str]()
    kept = text.rename(tmp_path / "kept.txt")
    run.share(tmp_path / "page.html", notice=said.append)
    kept.rename(text)
    assert said[0].startswith("Checked on 32 tokens of text that it generates: ")


def test_every_setting_of_a_model_is_known() -> None:
    """A new one needs code in model.js and check.py, and then its name in facts.py."""
    assert {field.name for field in dataclasses.fields(ModelSettings)} == set(facts._MODEL)


def test_weights_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="do not fit"):
        unpack([("a", [2, 3])], bytes(4))
