"""The text that a run was trained on, found again; or, if it was changed, what differs."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

from groundling.config import Config
from groundling.data.corpus import Corpus, prepare, reopen
from groundling.data.fingerprint import Contents, contents_of, difference, parting
from groundling.data.progress import Notice, Progress, silent
from groundling.data.sources import Source, find_source, read_text
from groundling.data.tokenizers.base import Tokenizer

_PIECE = 2**20  # tokens that are looked through at a time


class TextChanged(ValueError):
    """The text is not the one that a run was trained on."""


def find_again(
    was: Mapping[str, Any], run: str, config: Config, tokenizer: Tokenizer,
    notice: Notice = silent, progress: Progress = silent,
) -> Corpus:  # fmt: skip
    """The text of a run: `was` is what its record says of it, `run` its name on the command line.

    Raises ValueError if it is gone, and TextChanged, which is one and says in what it differs, if it was changed.
    """
    address, fingerprint, settings = config.corpus, was["fingerprint"], config.text
    try:
        source = find_source(address, settings.glob)
    except (FileNotFoundError, ConnectionError):
        kept = reopen(fingerprint, was["name"], address, tokenizer, settings, notice)
        if kept is None:
            raise ValueError(f"The text of the run {run} is gone: {address} is not there any more.") from None
        notice(f"{address} is not there any more; its tokens are still in the cache and are used.")
        return kept
    contents = contents_of(source, progress)
    refuse_change(was, run, config, tokenizer, source, contents)
    return prepare(source, settings, tokenizer=tokenizer, fingerprint=fingerprint, notice=notice, progress=progress)


def refuse_change(
    was: Mapping[str, Any], run: str, config: Config, tokenizer: Tokenizer, source: Source, contents: Contents
) -> None:
    """Raise TextChanged, with what differs, if `source`, whose contents were read, is not the text of the run."""
    if contents.fingerprint == was["fingerprint"]:
        return
    what = "it differs"
    if was["documents"] == len(source.documents) == 1:
        known = was.get("contents")
        size = f"{known[0]['bytes']:,} bytes" if known else f"{was['characters']:,} characters"
        what = f"it had {size} and has {contents.documents[0]['bytes']:,} bytes now"
        with suppress(ValueError, OSError):  # it is no text any more, or the cache is damaged
            kept = reopen(was["fingerprint"], was["name"], source.address, tokenizer, config.text)
            if kept is not None:
                new = (chunk.encode() for chunk in read_text(source.documents[0]))
                offset, line = parting(_bytes_of(kept), new)
                what += f", and from line {line:,} on (byte {offset:,}) it is another one"
    elif was.get("contents"):
        what = difference(was["contents"], contents.documents) or "its files are in another order"
    raise TextChanged(
        f"The text at {source.address} is not the one that the run {run} was trained on: {what}. Put the old text "
        "back, start a new run on the new one under another --name, or go on with the new one all the same: "
        f"`groundling resume {run} --accept-changed-text`."
    )


def _bytes_of(corpus: Corpus) -> Iterator[bytes]:
    whole = dataclasses.replace(corpus.train, stop=corpus.validation.stop)
    for start in range(0, len(whole), _PIECE):
        yield corpus.tokenizer.decode_bytes(whole.read(start, min(start + _PIECE, len(whole))))
