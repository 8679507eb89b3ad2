"""GGUF, which llama.cpp and Ollama read: weights, settings and tokenizer in one file.

The gpt2 family is llama.cpp's architecture gpt2, the modern one its qwen3. A tokenizer is its byte-level BPE ("gpt2"):
characters are BPE whose only merges put the bytes of a character together, bytes are BPE that merges nothing.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from groundling import storage
from groundling.data.tokenizers.base import BYTE_LETTERS, END_OF_TEXT, Tokenizer
from groundling.data.tokenizers.bpe import BpeTokenizer
from groundling.interchange import gguf_eos
from groundling.interchange.weight_names import Family, Names, family_of, from_external, to_external
from groundling.model.gpt import GPT

ROUNDED = ("f16", "q8_0", "q5_0", "q4_0")
FILE = "model.gguf"

_NAMES: dict[Family, Names] = {
    "gpt2": Names(
        {"wte": "token_embd", "wpe": "position_embd", "ln_f": "output_norm", "lm_head": "output"},
        "blk.{}",
        {
            "ln_1": ("attn_norm",),
            "attn.c_attn": ("attn_qkv",),
            "attn.c_proj": ("attn_output",),
            "ln_2": ("ffn_norm",),
            "mlp.c_fc": ("ffn_up",),
            "mlp.c_proj": ("ffn_down",),
        },
    ),
    "modern": Names(
        {"wte": "token_embd", "ln_f": "output_norm", "lm_head": "output"},
        "blk.{}",
        {
            "ln_1": ("attn_norm",),
            "attn.c_attn": ("attn_q", "attn_k", "attn_v"),
            "attn.rope.q_norm": ("attn_q_norm",),
            "attn.rope.k_norm": ("attn_k_norm",),
            "attn.c_proj": ("attn_output",),
            "ln_2": ("ffn_norm",),
            "mlp.c_fc": ("ffn_gate", "ffn_up"),
            "mlp.c_proj": ("ffn_down",),
        },
    ),
}
_EPSILON = {"gpt2": 1e-5, "modern": 1e-6}
# How llama.cpp calls the ways of splitting text into words that it shares with us, by the pattern that splits.
_GPT2_WORDS = "gpt-2"
_PATTERNS = {
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+":
        "qwen2",
}  # fmt: skip
_NORMAL, _CONTROL, _USER_DEFINED, _UNUSED = 1, 3, 4, 5  # llama.cpp's kinds of tokens
_NO_MERGE = (END_OF_TEXT, END_OF_TEXT)  # llama.cpp wants at least one; no text is split into such parts


def library() -> Any:
    """The package gguf. Raises ValueError with what to install."""
    try:
        import gguf
    except ImportError:
        raise ValueError('To write GGUF, the package gguf is needed: pip install "groundling[gguf]".') from None
    return gguf


def write(folder: Path, model: GPT, tokenizer: Tokenizer, quantize: str | None) -> None:
    """Write model.gguf, its weights in float32 or as `quantize` says, and an Ollama Modelfile."""
    gguf, settings, family = library(), model.config, family_of(model.config)
    tensors = {name: tensor.numpy() for name, tensor in to_external(model, _NAMES[family]).items()}
    width, epsilon, end = settings.n_embd, _EPSILON[family], tokenizer.end_of_text_id
    ends = end is not None
    if not ends:
        end = model.vocab_size
        if family == "gpt2":
            tensors = gguf_eos.with_layer_norm(tensors)
        else:
            tensors, epsilon = gguf_eos.with_rms_norm(tensors, epsilon)
            width = tensors["output_norm.weight"].size
    writer = gguf.GGUFWriter(folder / FILE, "gpt2" if family == "gpt2" else "qwen3")
    writer.add_context_length(settings.block_size)
    writer.add_embedding_length(width)
    writer.add_block_count(settings.n_layer)
    writer.add_feed_forward_length(settings.n_hidden)
    writer.add_head_count(settings.n_head)
    if family == "gpt2":
        writer.add_layer_norm_eps(epsilon)
    else:
        writer.add_head_count_kv(settings.kv_heads)
        writer.add_key_length(settings.head_dim)
        writer.add_value_length(settings.head_dim)
        writer.add_rope_freq_base(settings.rope_theta)
        writer.add_layer_norm_rms_eps(epsilon)
    _add_tokenizer(writer, tokenizer, model.vocab_size, end)
    kind = gguf.GGMLQuantizationType[(quantize or "f32").upper()]
    rounded = [name for name, array in tensors.items() if quantize and _is_rounded(name, array, quantize, ends)]
    if quantize and not rounded:
        raise ValueError(
            f"--quantize {quantize} rounds 32 numbers together, and --n-embd {width} cannot be divided so."
        )
    for name, array in tensors.items():
        if name in rounded:
            writer.add_tensor(name, gguf.quants.quantize(array, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, array)
    writer.add_file_type(gguf.LlamaFileType[_FILE_TYPES[quantize]])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    storage.write_file(folder / "Modelfile", _MODELFILE.format(context=settings.block_size))


def _is_rounded(name: str, array: npt.NDArray[np.float32], quantize: str, ends: bool) -> bool:
    """Matrices are. Not those of a vocabulary with a token of our making, whose entries are of too many sizes."""
    if array.ndim < 2 or name == "position_embd.weight" or (array.shape[1] % 32 and quantize != "f16"):
        return False
    return ends or name not in ("token_embd.weight", "output.weight")


_FILE_TYPES = {
    None: "ALL_F32", "f16": "MOSTLY_F16", "q8_0": "MOSTLY_Q8_0", "q5_0": "MOSTLY_Q5_0", "q4_0": "MOSTLY_Q4_0",
}  # fmt: skip
_MODELFILE = f'''# ollama create NAME -f Modelfile; ollama run NAME
FROM ./{FILE}
TEMPLATE """{{{{{{{{ .Prompt }}}}}}}}"""
PARAMETER num_ctx {{context}}
PARAMETER temperature 0.7
PARAMETER top_k 50
PARAMETER top_p 1
PARAMETER repeat_penalty 1
'''


def _add_tokenizer(writer: Any, tokenizer: Tokenizer, vocab_size: int, end: int | None) -> None:
    words, tokens, merges = _as_bpe(tokenizer)
    kinds = [_NORMAL] * len(tokens)
    for token in tokenizer.to_huggingface()["added_tokens"]:
        i = token["id"]
        tokens[i], kinds[i] = token["content"], _CONTROL if token["special"] else _USER_DEFINED
    tokens += [END_OF_TEXT] if end == vocab_size else []
    kinds += [_CONTROL] if end == vocab_size else []
    for i, token in enumerate(tokens):
        if not token:
            tokens[i], kinds[i] = f"[UNUSED{i}]", _UNUSED
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(words)
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges([" ".join(pair) for pair in merges or [_NO_MERGE]])
    if end is not None:
        writer.add_bos_token_id(end)
        writer.add_eos_token_id(end)
    writer.add_add_bos_token(False)
    writer.add_add_eos_token(False)


def _as_bpe(tokenizer: Tokenizer) -> tuple[str, list[str], list[tuple[str, str]]]:
    """How llama.cpp splits a text into words, the tokens by id in GPT-2's letters for bytes, and the merges.

    Raises ValueError for a tokenizer that its BPE cannot be.
    """
    if tokenizer.kind in ("char", "byte"):
        tokens = ["".join(BYTE_LETTERS[byte] for byte in piece) for piece in tokenizer.pieces]
        # From the first byte on, one after another: no other merge can come between.
        merges = {(token[:i], token[i]): None for token in tokens for i in range(1, len(token))}
        return _GPT2_WORDS, tokens, sorted(merges, key=lambda pair: len(pair[0]))
    if isinstance(tokenizer, BpeTokenizer):
        return _GPT2_WORDS, list(tokenizer.vocabulary), list(tokenizer.merges)
    definition = tokenizer.to_huggingface()
    model, words = definition["model"], _words_of(definition.get("pre_tokenizer"))
    if model.get("type") != "BPE" or model.get("ignore_merges") or words is None:
        raise ValueError(
            "llama.cpp has no tokenizer like this model's: exported to GGUF are characters, bytes, and byte-level BPE "
            "that splits words as GPT-2's or Qwen's."
        )
    tokens = [""] * tokenizer.vocab_size
    for token, i in model["vocab"].items():
        tokens[i] = token
    return words, tokens, [tuple(pair.split(" ") if isinstance(pair, str) else pair) for pair in model["merges"]]


def _words_of(definition: Any) -> str | None:
    steps = (definition or {}).get("pretokenizers", [definition or {}])
    if [step.get("type") for step in steps] == ["ByteLevel"] and steps[0].get("use_regex", True):
        return _GPT2_WORDS
    if [step.get("type") for step in steps] == ["Split", "ByteLevel"] and not steps[1].get("use_regex", True):
        return _PATTERNS.get((steps[0].get("pattern") or {}).get("Regex", ""))
    return None


def engine(folder: Path, model: GPT, tokenizer: Tokenizer) -> LlamaCpp | ReadBack:
    """llama.cpp where it is installed; else the file itself, read back."""
    extra = tokenizer.end_of_text_id is None
    try:
        import llama_cpp
    except ImportError:
        return ReadBack(folder, model, extra)
    return LlamaCpp(llama_cpp, folder, model, extra)


class LlamaCpp:
    """llama.cpp by its Python package, on the CPU."""

    def __init__(self, package: Any, folder: Path, model: GPT, extra: bool) -> None:
        self.name = f"llama.cpp (llama-cpp-python {package.__version__})"
        # It looks GELU up in a table of 16-bit numbers, and what is not GELU it computes in float32.
        self.tolerance = 0.05 if model.config.mlp == "gelu" else 2e-3
        self._extra, T = extra, model.config.block_size
        package.llama_log_set(_silence(package), None)  # it would talk about contexts shorter than 256
        self._llama = package.Llama(
            str(folder / FILE), n_ctx=T, n_batch=T, n_ubatch=T, n_gpu_layers=0, logits_all=True, verbose=False,
            type_k=package.GGML_TYPE_F32, type_v=package.GGML_TYPE_F32, use_mmap=False,
            n_threads=torch.get_num_threads(), n_threads_batch=torch.get_num_threads(),
        )  # fmt: skip

    def logits(self, ids: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """(T,) -> (T, V); not a number anywhere if a token of our making is likely somewhere."""
        self._llama.reset()
        self._llama.eval(ids.tolist())
        found: npt.NDArray[np.float32] = np.array(self._llama.scores[: len(ids)], dtype=np.float32)
        if not self._extra:
            return found
        if not gguf_eos.is_unlikely(found):
            found[:] = np.nan  # texts would end anywhere
        return found[:, :-1]

    def greedy(self, ids: list[int], n: int) -> list[int]:
        self._llama.reset()
        made = self._llama.generate(ids, temp=0.0, top_k=1, repeat_penalty=1.0)
        return [int(token) for _, token in zip(range(n), made, strict=False)]

    def encode(self, text: str) -> list[int] | None:
        return list(self._llama.tokenize(text.encode(), add_bos=False, special=False))


@cache
def _silence(package: Any) -> Any:
    """What llama.cpp tells its messages to, as long as this process lives."""
    return package.llama_log_callback(lambda *_: None)


class ReadBack:
    """The file's own tensors, in our model: without llama.cpp, that the file holds the right numbers is all that can
    be shown."""

    name = "groundling, on the tensors read back from the GGUF file (llama.cpp is not installed here, and did not run)"
    tolerance = 1e-4

    def __init__(self, folder: Path, model: GPT, extra: bool) -> None:
        gguf = library()
        tensors: gguf_eos.Tensors = {
            t.name: np.asarray(gguf.quants.dequantize(t.data, t.tensor_type), dtype=np.float32).copy()
            for t in gguf.GGUFReader(folder / FILE).tensors
        }
        if extra:
            tensors = gguf_eos.without(tensors)
            if model.config.tie_head:
                del tensors["output.weight"]
        self._model = GPT(model.config, model.vocab_size).eval()
        from_external(
            self._model, _NAMES[family_of(model.config)], {n: torch.from_numpy(a) for n, a in tensors.items()}
        )

    def logits(self, ids: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        with torch.inference_mode():
            found: npt.NDArray[np.float32] = self._model(torch.from_numpy(ids[None]))[0].numpy()
        return found

    def greedy(self, ids: list[int], n: int) -> list[int]:
        from groundling.config import Sampling
        from groundling.inference.engine import generate

        return list(generate(self._model, ids, n, Sampling(temperature=0)))

    def encode(self, text: str) -> list[int] | None:
        return None
