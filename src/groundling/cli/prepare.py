"""The command prepare: tokenize a text into the cache, before training."""

from __future__ import annotations

import sys
import time
from contextlib import AbstractContextManager, nullcontext
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from groundling.cli.app import Corpus, Json, app, print_json, print_rows
from groundling.cli.flags import with_settings
from groundling.config import CorpusSettings, Limits
from groundling.training.signals import ended_by_signals

Executor = Annotated[
    Literal["local", "ray"],
    Parameter(
        help='What reads and tokenizes: processes of this machine, or a Ray cluster: pip install "groundling[ray]".'
    ),
]
Address = Annotated[
    str | None,
    Parameter(
        help="The Ray cluster, such as 10.0.0.1:6379. Default: $RAY_ADDRESS, or one that runs here, or a new one."
    ),
]


@app.command(sort_key=6)
@with_settings("text")
def prepare(
    *corpus: Corpus,
    processes: int | None = None,
    executor: Executor = "local",
    ray_address: Address = None,
    json: Json = False,
    **settings: Any,
) -> None:
    """Tokenize a text into the cache (default: shakespeare), so that training with the same settings starts at once.

    After a kill, the same command continues where it was.

    Args:
        processes: How many processes read and tokenize. Their number changes nothing else. Default: one for each core
            if the text is large.
    """
    if processes is not None:
        Limits(1, 1000).check("--processes", processes)
        if executor == "ray":
            raise ValueError("--processes does nothing with --executor ray, which uses all cores of its nodes.")
    if ray_address is not None and executor != "ray":
        raise ValueError("--ray-address does nothing without --executor ray.")
    with ended_by_signals():
        from groundling.data import corpus as corpora
        from groundling.data.sources import find_source
        from groundling.reporting.console import Console
        from groundling.training.events import reporters

        began, text = time.perf_counter(), CorpusSettings(**settings)
        elsewhere: AbstractContextManager[None] = nullcontext()
        if executor == "ray":
            from groundling.data.shards.on_ray import on_ray

            elsewhere = on_ray(ray_address)
        with Console(sys.stderr) as console, elsewhere:
            notice, progress = reporters(console)
            source = find_source(corpus or "shakespeare", text)
            made = corpora.prepare(source, text, processes=processes, notice=notice, progress=progress)
        seconds = time.perf_counter() - began
    n_tokens, folder = sum(made.token_counts), made.train.path.parent
    if json:
        return print_json({
            "name": made.name, "files": len(source.files), "bytes": source.size, "documents": made.n_documents,
            "characters": made.n_characters, "tokens": n_tokens, "training_tokens": len(made.train),
            "validation_tokens": len(made.validation), "tokenizer": made.tokenizer.kind,
            "vocab_size": made.tokenizer.vocab_size, "fingerprint": made.fingerprint, "seconds": round(seconds, 3),
            "folder": str(folder),
        })  # fmt: skip
    print_rows([
        ("text", f"{made.name}: {len(source.files):,} file(s), {source.size / 1e6:,.1f} MB, {made.n_documents:,} "
                 f"document(s), {made.n_characters:,} characters"),
        ("tokens", f"{n_tokens:,}: {len(made.train):,} for training, {len(made.validation):,} for validation; "
                   f"{made.tokenizer.kind} tokenizer, vocabulary of {made.tokenizer.vocab_size:,}"),
        ("time", f"{seconds:,.1f} s: {source.size / 1e6 / seconds:,.1f} MB/s, {n_tokens / seconds:,.0f} tokens/s"),
        ("folder", folder),
    ])  # fmt: skip
    return None
