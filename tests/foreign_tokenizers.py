"""Small tokenizers of the kinds that Llama 2, Llama 3 and SmolLM have, learned by the library `tokenizers`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

BYTES = [f"<0x{i:02X}>" for i in range(256)]


def written(folder: Path, library: tokenizers.Tokenizer, **config: Any) -> Path:
    folder.mkdir(exist_ok=True)
    library.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def learned(prose: str, model: Any, special: list[str], size: int = 700, **parts: Any) -> tokenizers.Tokenizer:
    library = tokenizers.Tokenizer(model)
    for name, part in parts.items():
        setattr(library, name, part)
    bytes_of = [] if model.byte_fallback else pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=special, initial_alphabet=bytes_of, show_progress=False
    )
    library.train_from_iterator([prose], trainer)
    return library


def like_llama2(prose: str) -> tokenizers.Tokenizer:
    library = learned(
        prose, models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True), ["<unk>", "<s>", "</s>", *BYTES],
        normalizer=normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]),
        pre_tokenizer=pre_tokenizers.Split("▁", "merged_with_next"),  # to learn words
    )  # fmt: skip
    library.pre_tokenizer = None
    back: list[Any] = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    library.decoder = decoders.Sequence(back)
    definition = json.loads(library.to_str())  # the bytes are tokens like others there
    definition["added_tokens"] = [token for token in definition["added_tokens"] if token["id"] < 3]
    library = tokenizers.Tokenizer.from_str(json.dumps(definition))
    library.post_processor = processors.TemplateProcessing("<s> $A", "<s> $A <s> $B", [("<s>", 1)])
    return library


def like_llama3(prose: str) -> tokenizers.Tokenizer:
    words = tokenizers.Regex(
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
        r"|\s+(?!\S)|\s+"
    )
    splits = [pre_tokenizers.Split(words, "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
    library = learned(
        prose, models.BPE(ignore_merges=True), ["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"],
        pre_tokenizer=pre_tokenizers.Sequence(splits), decoder=decoders.ByteLevel(),
    )  # fmt: skip
    start = processors.TemplateProcessing("<|begin_of_text|> $A", None, [("<|begin_of_text|>", 0)])
    library.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), start])
    return library


def like_smollm(prose: str) -> tokenizers.Tokenizer:
    splits = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)]
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    return learned(
        prose, models.BPE(), special, pre_tokenizer=pre_tokenizers.Sequence(splits), decoder=decoders.ByteLevel()
    )
