"""Tokenizers from other projects' files give the ids that transformers gives."""

from __future__ import annotations

import itertools
import json
import struct
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from tokenizers import models, pre_tokenizers

from foreign_tokenizers import learned, like_llama2, like_llama3, like_smollm, written
from groundling.data.tokenizers.base import Tokenizer

HARD = (
    "Hello world", " Hello", "  two  spaces ", "", " ", "\n", "\n\nHi\t x\r\n", "Ünïcödé 語😀 “x”", "12345 67.8 1",
    "'tis I'LL", "def f(x):\n    return x  \n", "a" * 50, "\u00a0nbsp\u200b", "the other theory",
    "<unk> and <|im_start|>",
)  # fmt: skip


def same_ids(folder: Path, start: list[int], kind: str = "llama") -> Tokenizer:
    from transformers import AutoTokenizer

    (folder / "config.json").write_text(json.dumps({"model_type": kind}))
    theirs, ours = AutoTokenizer.from_pretrained(folder), Tokenizer.load(folder)
    for text in HARD:
        ids = theirs.encode(text, add_special_tokens=False, split_special_tokens=True)
        assert ours.encode(text, "skip") == ids, text
        assert ours.encode_prompt(text, "skip") == [*start, *ids], text
    assert theirs.encode("Hello") == ours.encode_prompt("Hello")
    return ours


def test_llama_2_and_tinyllama(prose: str, tmp_path: Path) -> None:
    """transformers' own class puts a space before a text unless there is one. The file always does."""
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    folder = written(tmp_path / "a", like_llama2(prose), tokenizer_class="PreTrainedTokenizerFast", **names)
    ours = same_ids(folder, [1])
    assert (ours.start_of_text_id, ours.end_of_text_id) == (1, 2)
    for text in HARD:
        assert ours.decode(ours.encode(text)) == text
    chunks = ours.encode_chunks(["Hel", "lo the", "re"])
    assert b"".join(map(ours.decode_bytes, chunks)) == b" Hello there"
    folder = written(tmp_path / "b", like_llama2(prose), tokenizer_class="LlamaTokenizer", add_bos_token=True, **names)
    assert same_ids(folder, [1]) != ours
    without_space = names | {"add_prefix_space": False, "add_bos_token": True}
    written(folder, like_llama2(prose), tokenizer_class="LlamaTokenizer", **without_space)
    assert same_ids(folder, [1]).encode("Hello") != ours.encode("Hello")
    library = like_llama2(prose)
    library.post_processor = None
    written(folder, library, tokenizer_class="LlamaTokenizerFast", add_bos_token=False, **names)
    assert same_ids(folder, []).start_of_text_id is None
    (tmp_path / "again").mkdir()
    ours.save(tmp_path / "again" / "tokenizer.json")
    assert Tokenizer.load(tmp_path / "again") == ours
    assert Tokenizer.load(tmp_path / "again").start_of_text_id == 1


def test_llama_3_and_smollm(prose: str, tmp_path: Path) -> None:
    names = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"}
    ours = same_ids(written(tmp_path / "a", like_llama3(prose), **names), [0])
    assert ours.end_of_text_id == 2  # not <|end_of_text|>, since the file names another
    assert Tokenizer.of(ours.to_dict(), tmp_path) == ours
    folder = written(tmp_path / "b", like_smollm(prose), tokenizer_class="GPT2Tokenizer", bos_token="<|im_start|>")
    assert same_ids(folder, []).end_of_text_id == 0


def test_qwen_in_vocab_json_and_merges_txt(prose: str, tmp_path: Path) -> None:
    library = learned(prose, models.BPE(), [], pre_tokenizer=pre_tokenizers.ByteLevel(False))
    library.model.save(str(tmp_path))
    for kind in ("config", "added"):
        added = {"<|endoftext|>": 700, "<|im_start|>": 701, "<|tool|>": 702}
        decoder = {str(i): {"content": name, "special": i < 702, "normalized": False} for name, i in added.items()}
        names = {"tokenizer_class": "Qwen2Tokenizer", "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}
        extra: dict[str, Any] = {"added_tokens_decoder": decoder} if kind == "config" else {}
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(names | extra))
        if kind == "added":
            (tmp_path / "added_tokens.json").write_text(json.dumps(added))
            special = {"additional_special_tokens": ["<|im_start|>"]}
            (tmp_path / "special_tokens_map.json").write_text(json.dumps(special))
        ours = same_ids(tmp_path, [], "qwen2")
        assert (ours.vocab_size, ours.end_of_text_id) == (703, 700)
        assert ours.encode("a<|tool|><|im_start|>")[1] == 702  # tools are text, and im_start is special
        assert 701 not in ours.encode("<|im_start|>")
        assert ours.encode("e\u0301", "skip") == ours.encode("é")
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<|endoftext|>": 900}))
    with pytest.raises(ValueError, match=r"<\|endoftext\|>' cannot have the id 900, .* the next free one is 700"):
        Tokenizer.load(tmp_path)


def sentencepiece(pieces: list[tuple[str, float, int]], kind: int = 2, keep_spaces: bool = True) -> bytes:
    """A model as SentencePiece writes it: fields, each with its number and kind, then the value."""

    def field(number: int, value: bytes | float) -> bytes:
        if isinstance(value, int):
            return varint(number << 3) + varint(value)
        if isinstance(value, float):
            return varint(number << 3 | 5) + struct.pack("<f", value)
        return varint(number << 3 | 2) + varint(len(value)) + value

    def varint(value: int) -> bytes:
        return bytes([value]) if value < 128 else bytes([value & 127 | 128]) + varint(value >> 7)

    listed = (field(1, field(1, piece.encode()) + field(2, score) + field(3, type)) for piece, score, type in pieces)
    training, normalizing = field(3, kind) + field(35, 1), field(4, 0) if keep_spaces else b""
    return b"".join(listed) + field(2, training) + field(3, normalizing)


def test_a_sentencepiece_model(prose: str, tmp_path: Path) -> None:
    """It gives the ids of the tokenizer.json that it was converted to: pieces in the order in which they are merged."""
    theirs = json.loads(like_llama2(prose).to_str())
    theirs["model"]["merges"].sort(key=lambda pair: theirs["model"]["vocab"]["".join(pair)])
    library = tokenizers.Tokenizer.from_str(json.dumps(theirs))
    types = {0: 2, 1: 3, 2: 3} | dict.fromkeys(range(3, 259), 6)
    vocabulary = sorted(theirs["model"]["vocab"].items(), key=lambda item: item[1])
    pieces = [(piece, -float(i), types.get(i, 1)) for piece, i in vocabulary]
    path = tmp_path / "tokenizer.model"
    path.write_bytes(sentencepiece(pieces))
    ours = Tokenizer.load(path)
    for text in HARD:
        library.encode_special_tokens = True
        assert ours.encode(text, "skip") == library.encode(text, add_special_tokens=False).ids, text
    assert (ours.start_of_text_id, ours.end_of_text_id, ours.vocab_size) == (None, 2, len(pieces))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"add_bos_token": True, "bos_token": "<s>"}))
    assert Tokenizer.load(tmp_path).encode_prompt("Hello") == [1, *ours.encode("Hello")]
    (tmp_path / "added_tokens.json").write_text(
        json.dumps({"<unk>": 0, "<s>": 1, "</s>": 2, "<|im_end|>": len(pieces)})
    )
    assert Tokenizer.load(tmp_path).encode("a<|im_end|>")[-1] == len(pieces)  # some files list the usual ones, too
    for content, sentence in (
        (sentencepiece(pieces, kind=1), "is a SentencePiece model of another type than BPE"),
        (sentencepiece(pieces, keep_spaces=False), "normalizes text or removes spaces"),
        (sentencepiece(pieces)[:-3], "is damaged: it is not a SentencePiece model"),
        (b"", "is damaged: it is not a SentencePiece model"),
        (b"IQ== 0\nIg== 1\n", "is in tiktoken's format"),
    ):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=sentence):
            Tokenizer.load(path)


def test_a_damaged_sentencepiece_model_is_one_sentence(tmp_path: Path) -> None:
    pieces = [("<unk>", 0.0, 2), ("</s>", 0.0, 3), ("▁", -1.0, 1), ("a", -2.0, 1), ("▁a", -0.5, 1)]
    whole, path = sentencepiece(pieces), tmp_path / "tokenizer.model"
    path.write_bytes(whole)
    assert Tokenizer.load(path).encode("aa a", "skip") == [4, 3, 4]
    for i in range(len(whole)):
        for changed in (whole[:i], whole[:i] + b"\xff" + whole[i + 1 :], whole[:i] + b"\x08" + whole[i:]):
            path.write_bytes(changed)
            with suppress(ValueError):  # and nothing else
                Tokenizer.load(path)
    path.write_bytes(sentencepiece([*pieces, ("a" * 1000, -3.0, 1)]))
    with pytest.raises(ValueError, match="is damaged"):
        Tokenizer.load(path)


def test_others_are_named(tmp_path: Path) -> None:
    pieces = models.WordPiece({"[UNK]": 0, "a": 1, "##b": 2}, unk_token="[UNK]")
    with pytest.raises(ValueError, match=r"is a WordPiece tokenizer, which does not keep the spaces of a text"):
        Tokenizer.load(written(tmp_path / "a", tokenizers.Tokenizer(pieces)))
    (tmp_path / "tekken.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match=r"groundling does not read Mistral's tekken\.json"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize("like", [like_llama2, like_llama3, like_smollm])
def test_documents_encoded_together_get_the_ids_of_each_alone(prose: str, tmp_path: Path, like: Any) -> None:
    ours = Tokenizer.load(written(tmp_path, like(prose)))
    texts = [text for text in HARD if text] + [prose[:200_000]]
    alone = [ours.encode(text) for text in texts]
    ids, lengths = ours.encode_batch(texts)
    assert (ids.tolist(), lengths) == ([*itertools.chain(*alone)], list(map(len, alone)))
