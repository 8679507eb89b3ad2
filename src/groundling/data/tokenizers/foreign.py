"""Tokenizers from the files of other projects.

These are `tokenizer.json` of the library `tokenizers`, `vocab.json` with `merges.txt` of GPT-2 and Qwen, and
`tokenizer.model` of SentencePiece. As in transformers, files beside them add tokens.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from groundling import storage
from groundling.data.tokenizers.base import Tokenizer, not_a_tokenizer
from groundling.data.tokenizers.bpe import BpeTokenizer
from groundling.data.tokenizers.byte_level import BYTE_LEVEL
from groundling.data.tokenizers.huggingface import HuggingFaceTokenizer
from groundling.data.tokenizers.sentencepiece import read_model
from groundling.storage.safe_read import LARGEST_TOKENIZER, read_bytes

QWEN_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_SPECIAL = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_SPECIAL_LISTS = ("additional_special_tokens", "extra_special_tokens")


def read_foreign(value: dict[str, Any], path: Path) -> Tokenizer:
    """The tokenizer of a file that groundling did not write: `value` is its JSON. See `Tokenizer.load`."""
    if isinstance(value.get("model"), dict):
        return _finished(value, path)
    merges, ids = path.with_name("merges.txt"), list(value.values())
    if not ids or not all(type(i) is int for i in ids):
        raise not_a_tokenizer(path)
    if sorted(ids) != list(range(len(ids))):
        raise ValueError(f"{path} is damaged: its ids are not 0 to {len(ids) - 1}.")
    if not merges.is_file():
        raise FileNotFoundError(f"{path} needs GPT-2's merges.txt beside it.")
    lines = read_bytes(merges, LARGEST_TOKENIZER).decode("utf-8", "replace").replace("\r\n", "\n").split("\n")
    pairs = [line.split(" ") for line in lines[lines[0].startswith("#version") :] if line]
    try:
        tokenizer = BpeTokenizer(sorted(value, key=value.__getitem__), pairs)
    except ValueError as error:
        raise ValueError(f"{path} and its {merges.name} are damaged: {error}") from None
    qwen = _is_qwen(path)
    if not qwen and not _missing(tokenizer.to_huggingface(), path):
        return tokenizer
    definition = tokenizer.to_huggingface()
    if qwen:
        words = {"type": "Split", "pattern": {"Regex": QWEN_WORDS}, "behavior": "Isolated", "invert": False}
        steps = [words, BYTE_LEVEL | {"use_regex": False}]
        definition |= {
            "normalizer": {"type": "NFC"},
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps},
        }
    return _finished(definition, path)


def read_sentencepiece(path: Path) -> Tokenizer:
    """The tokenizer of a SentencePiece model, `tokenizer.model`."""
    return _finished(read_model(read_bytes(path, LARGEST_TOKENIZER), path), path)


def _finished(definition: dict[str, Any], path: Path) -> Tokenizer:
    """The tokenizer, with what transformers takes from the files beside `path`."""
    settings, known = beside(path, "tokenizer_config.json"), definition.get("added_tokens") or []
    if not isinstance(known, list) or not all(isinstance(token, dict) and "id" in token for token in known):
        raise not_a_tokenizer(path)
    added = _missing(definition, path)
    definition = definition | {"added_tokens": [*known, *added]}
    model = definition["model"]
    if str(settings.get("tokenizer_class")).startswith("LlamaTokenizer") and model.get("byte_fallback"):
        # transformers' class has a space before a text unless there is one, whatever the file says.
        scheme = "never" if settings.get("add_prefix_space") is False else "first"
        metaspace = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": False}
        definition |= {"normalizer": None, "pre_tokenizer": metaspace}
    if settings.get("add_bos_token") is True:
        definition["post_processor"] = _start(definition, settings)
    end = token_name(settings.get("eos_token") or beside(path, "special_tokens_map.json").get("eos_token"))
    ends = [] if end is None else [end]
    tokenizer = HuggingFaceTokenizer.from_dict({"version": 1, "definition": definition, "ends": ends}, path)
    for token in added:
        if tokenizer._library.token_to_id(token["content"]) != token["id"]:
            raise ValueError(
                f"{path.parent}: the token {token['content']!r} cannot have the id {token['id']}, as the files beside "
                f"{path.name} say, since the next free one is {tokenizer._library.token_to_id(token['content'])}."
            )
    return tokenizer


def _missing(definition: dict[str, Any], path: Path) -> list[dict[str, Any]]:
    """The tokens that the files beside `path` add: tokenizer_config.json, or added_tokens.json in older folders."""
    known = {token.get("content") for token in definition.get("added_tokens") or []}
    settings = beside(path, "tokenizer_config.json")
    listed = settings.get("added_tokens_decoder")
    names = settings if isinstance(listed, dict) else settings | beside(path, "special_tokens_map.json")
    more = [names.get(key) for key in _SPECIAL_LISTS]
    lists = [token for each in more if isinstance(each, list | dict) for token in _values(each)]
    special = {token_name(token) for token in [*(names.get(key) for key in _SPECIAL), *lists]} - {None}
    if isinstance(listed, dict):
        tokens = {int(i): token for i, token in listed.items() if i.isdecimal() and isinstance(token, dict)}
    else:
        plain = beside(path, "added_tokens.json")
        tokens = {i: {"content": token, "special": token in special} for token, i in plain.items() if type(i) is int}
    vocabulary = definition["model"].get("vocab")
    if isinstance(vocabulary, dict):  # a special token of the vocabulary that nothing lists as added
        tokens = {vocabulary[name]: {"content": name, "special": True} for name in special & vocabulary.keys()} | tokens
    flags = ("single_word", "lstrip", "rstrip", "normalized", "special")
    return [
        {"id": i, "content": token["content"]}
        | {"normalized": not token.get("special")}
        | {flag: bool(token.get(flag)) for flag in flags if flag != "normalized" or flag in token}
        for i, token in sorted(tokens.items())
        if isinstance(token.get("content"), str) and token["content"] not in known
    ]


def _start(definition: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any] | None:
    """A post-processor that puts the start token before a text."""
    name = token_name(settings.get("bos_token"))
    ids = [token["id"] for token in definition["added_tokens"] if token.get("content") == name]
    if not ids:
        return None
    text: dict[str, Any] = {"Sequence": {"id": "A", "type_id": 0}}
    start: dict[str, Any] = {"SpecialToken": {"id": name, "type_id": 0}}
    second = [{kind: each | {"type_id": 1} for kind, each in part.items()} for part in (start, text)]
    second[1]["Sequence"]["id"] = "B"
    tokens = {name: {"id": name, "ids": ids[:1], "tokens": [name]}}
    pair = [start, text, *second]
    return {"type": "TemplateProcessing", "single": [start, text], "pair": pair, "special_tokens": tokens}


def _is_qwen(path: Path) -> bool:
    kind = beside(path, "tokenizer_config.json").get("tokenizer_class")
    if kind is None:
        kind = beside(path, "config.json").get("model_type")
    return str(kind).lower().startswith("qwen")


def token_name(token: Any) -> str | None:
    """The text of a special token, which may be written as an object."""
    content = token.get("content") if isinstance(token, dict) else token
    return content if isinstance(content, str) else None


def _values(tokens: list[Any] | dict[str, Any]) -> Iterable[Any]:
    return tokens.values() if isinstance(tokens, dict) else tokens


def beside(path: Path, name: str) -> dict[str, Any]:
    """The JSON of a file beside `path`, or nothing."""
    other = path.with_name(name)
    value = storage.read_json(other, LARGEST_TOKENIZER) if other.is_file() else {}
    return value if isinstance(value, dict) else {}
