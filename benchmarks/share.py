"""Speed and size of shared pages: tokens per second in a browser, and the page's size against its weights in 8 bits.

    python benchmarks/share.py                        # the presets nano, laptop and workshop, random weights
    python benchmarks/share.py --presets laptop --tokens 1000

Needs Chromium and the package `playwright`. Nothing is trained. `engine` generates without painting, `script` does so
without WebAssembly, and `page` is what a reader gets after a click on the button. All sample with temperature 0.7 and
top-k 50. Figures are the best of the rounds. Run nothing else meanwhile.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch

from groundling.config import PRESETS
from groundling.data.tokenizers.base import CharTokenizer
from groundling.model.gpt import GPT
from groundling.run.share.facts import About
from groundling.run.share.share import shared_page

CHARACTERS = sorted("\n !$&',-.3:;?ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz")  # of tiny Shakespeare
GENERATE = """([count, plain]) => {
  const { memory } = model.head, { times } = memory, options = { count, temperature: 0.7, topK: 50, seed: 1 };
  if (plain) memory.times = (...places) => timesInScript(memory.buffer, ...places);
  const start = performance.now();
  Array.from(generate(model, [0], options));
  const seconds = (performance.now() - start) / 1000;
  memory.times = times;
  return count / seconds;
}"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--presets", nargs="+", default=["nano", "laptop", "workshop"], choices=list(PRESETS))
    parser.add_argument("--tokens", type=int, default=500, help="default: 500")
    parser.add_argument("--rounds", type=int, default=3, help="default: 3")
    arguments = parser.parse_args()
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver, tempfile.TemporaryDirectory() as folder:
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        print("| preset | parameters | page, MB | bytes per weight | engine, tokens/s | script | page |")
        print("|---|---|---|---|---|---|---|")
        for preset in arguments.presets:
            print(measured(browser, Path(folder) / f"{preset}.html", preset, arguments))
        browser.close()


def measured(browser: Any, path: Path, preset: str, arguments: argparse.Namespace) -> str:
    """A row of the table."""
    torch.manual_seed(0)
    model = GPT(PRESETS[preset].model, len(CHARACTERS)).eval()
    n = sum(p.numel() for p in model.parameters())
    path.write_text(shared_page(model, CharTokenizer(CHARACTERS), 1, About(preset, 0)), encoding="utf-8")
    page = browser.new_page()
    page.goto(path.as_uri())
    page.fill("#count", str(arguments.tokens))
    rates = list[tuple[float, ...]]()
    for _ in range(arguments.rounds):
        engine, script = (page.evaluate(GENERATE, [arguments.tokens, plain]) for plain in (False, True))
        page.click("#go")
        page.locator("#go:enabled").wait_for()
        seconds = float(page.inner_text("#said").split(" in ")[1].split()[0])
        rates.append((engine, script, arguments.tokens / seconds))
    page.close()
    size = path.stat().st_size
    best = " | ".join(f"{max(column):,.0f}" for column in zip(*rates, strict=True))
    return f"| {preset} | {n:,} | {size / 1e6:.2f} | {size / n:.3f} | {best} |"


if __name__ == "__main__":
    main()
