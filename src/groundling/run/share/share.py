"""Write a run as one HTML page that generates text in a browser: without a server, a network or groundling."""

from __future__ import annotations

import base64
import hashlib
import os
import re
from pathlib import Path

from groundling import __version__, storage
from groundling.config import Sampling
from groundling.data.progress import Notice, silent
from groundling.data.tokenizers.base import Tokenizer
from groundling.escape import command
from groundling.model.gpt import GPT
from groundling.reporting.html import render
from groundling.run.folder import RunFolder
from groundling.run.share.check import check, windows_to_check
from groundling.run.share.facts import About, about_run, check_model, model_facts, tokenizer_facts
from groundling.run.share.weights import pack

SCRIPTS = tuple(f"run/share/{name}.js" for name in ("kernel", "model", "generate", "tokenizer", "page"))
MOST_WEIGHTS = 20_000_000  # a page of 27 MB


def share_run(run: RunFolder, path: str | os.PathLike[str] | None = None, *, notice: Notice = silent) -> Path:
    """Write the run to `path` as one HTML page that generates text in a browser.

    The page holds the weights of the run's best checkpoint, or of the one that was loaded, in 8 bits. Before it is
    written, it is read as a browser reads it, and compared with the model: `notice` gets the result. Default: in
    `exports` in the run's folder, with the run's name. Returns the path.

    Raises FileExistsError if the file exists, and ValueError if the model or its tokenizer is of a kind that a page
    cannot compute, or too large.
    """
    run.check_writes()
    check_model(run.config.model)
    target = run.folder / "exports" / f"{run.name}.html" if path is None else storage.output_file("--to", path)
    if target.exists():
        raise FileExistsError(f"{target} already exists. Choose another file with --to, or delete this one.")
    storage.check_writable(target.parent, "--to", notice)
    model = run.model
    if (n := sum(p.numel() for p in model.parameters())) > MOST_WEIGHTS:
        export = command("export", run.reference, "--to", "gguf")
        raise ValueError(
            f"The run {run.name} has {n:,} parameters, and a page can hold {MOST_WEIGHTS:,}. For a larger model, use "
            f"`{export}`."
        )
    page = shared_page(model, run.tokenizer, run.record.corpus.documents, about_run(run))
    notice(check(page, model, *windows_to_check(run)).sentence)
    storage.make_folder(target.parent, "--to")
    storage.write_file(target, page)
    return target


def shared_page(model: GPT, tokenizer: Tokenizer, documents: int, about: About) -> str:
    """The page. `documents` is their number in the training text, which decides what an empty prompt means.

    Raises ValueError for a tokenizer that the page cannot compute.
    """
    shapes, content = pack(model.state_dict())
    data = {
        "model": model_facts(model.config), "tokenizer": tokenizer_facts(tokenizer, documents), "shapes": shapes,
    }  # fmt: skip
    return _sealed(
        render(
            "run/share/page.html", SCRIPTS, about=about, data=data, weights=base64.b64encode(content).decode(),
            sampling=Sampling(seed=0), version=__version__,
        )
    )  # fmt: skip


def _sealed(page: str) -> str:
    """The page with a policy under which nothing but its own style and scripts is used, named by their hashes."""
    style = re.search("<style>(.*?)</style>", page, re.DOTALL)
    assert style
    digest = base64.b64encode(hashlib.sha256(style[1].encode()).digest()).decode()
    # The engine compiles a function of its own in WebAssembly.
    page = page.replace("'unsafe-inline'", f"'sha256-{digest}'", 1)
    return page.replace("script-src ", "script-src 'wasm-unsafe-eval' ", 1)
