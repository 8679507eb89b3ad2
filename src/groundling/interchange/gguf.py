"""GGUF, the format of llama.cpp and Ollama: weights, settings and tokenizer in one file.

The gpt2, qwen3 and llama families are llama.cpp's architectures of these names. A Qwen2 becomes a llama with biases:
llama.cpp's own requires heads that add up to the width. Tokenizers become its byte-level BPE ("gpt2"): a character
tokenizer is BPE whose merges only join the bytes of each character, a byte tokenizer is BPE without merges.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from groundling import storage
from groundling.config import ModelSettings, Sampling
from groundling.data.conversations import Message
from groundling.data.tokenizers.base import END_OF_TEXT, Tokenizer
from groundling.data.tokenizers.byte_level import BYTE_LETTERS
from groundling.data.tokenizers.chat import ChatTokenizer
from groundling.data.tokenizers.chat_template import as_openai
from groundling.data.tokenizers.foreign import QWEN_WORDS
from groundling.data.tokenizers.huggingface import steps_of
from groundling.inference.engine import generate
from groundling.interchange import gguf_eos
from groundling.interchange.modelfile import modelfile
from groundling.interchange.weight_names import Family, Names, family_of, from_external, to_external
from groundling.model.gpt import GPT
from groundling.model.rope import rope_frequencies

QUANTIZATIONS = ("f16", "q8_0", "q5_0", "q4_0")
FILE = "model.gguf"

_BOTH = {
    "wte": "token_embd", "wpe": "position_embd", "h": "blk.{}", "ln_f": "output_norm", "lm_head": "output",
    "ln_1": "attn_norm", "attn.c_proj": "attn_output", "ln_2": "ffn_norm", "mlp.c_proj": "ffn_down",
}  # fmt: skip
_LLAMA = _BOTH | {"attn.c_attn": "attn_q attn_k attn_v", "mlp.c_fc": "ffn_gate ffn_up"}
_NAMES: dict[Family, Names] = {
    "gpt2": _BOTH | {"attn.c_attn": "attn_qkv", "mlp.c_fc": "ffn_up"},
    "qwen3": _LLAMA | {"attn.rope.q_norm": "attn_q_norm", "attn.rope.k_norm": "attn_k_norm"},
    "llama": _LLAMA,
}  # fmt: skip
_ROPE_FACTORS = "rope_freqs.weight"
_LLAMA3_WORDS = QWEN_WORDS.replace(r"|\p{N}|", r"|\p{N}{1,3}|")
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = range(1, 7)  # llama.cpp's token types
_NO_MERGE = (END_OF_TEXT, END_OF_TEXT)  # llama.cpp requires at least one merge; this one never applies


def write(folder: Path, model: GPT, tokenizer: Tokenizer, quantize: str | None) -> None:
    """Write model.gguf, with weights in float32 or as `quantize` says, and a Modelfile for Ollama."""
    try:
        import gguf
    except ImportError:
        raise ValueError('GGUF export needs the package gguf: pip install "groundling[gguf]".') from None
    settings, family = model.config, _architecture(model.config)
    tensors = {name: tensor.numpy() for name, tensor in to_external(model, _NAMES[family]).items()}
    epsilon, extra_token = settings.epsilon, _end(tokenizer) is None
    if extra_token and family == "gpt2":
        tensors = gguf_eos.with_layer_norm(tensors)
    elif extra_token:
        tensors, epsilon = gguf_eos.with_rms_norm(tensors, epsilon)
    if family == "llama":
        tensors = _paired(tensors, settings)
    writer = gguf.GGUFWriter(folder / FILE, family)
    writer.add_context_length(settings.block_size)
    writer.add_embedding_length(tensors["output_norm.weight"].size)
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
        if settings.rope_scaling.startswith("linear"):
            writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
            writer.add_rope_scaling_factor(settings.rope_factors[0])
        elif settings.rope_scaling.startswith("yarn"):
            writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
            writer.add_rope_scaling_factor(settings.rope_factors[0])
            writer.add_rope_scaling_orig_ctx_len(int(settings.rope_factors[1]))
        elif settings.rope_factors:
            plain = dataclasses.replace(settings, rope_scaling="none")
            tensors[_ROPE_FACTORS] = (rope_frequencies(plain) / rope_frequencies(settings)).float().numpy()
    _add_tokenizer(writer, tokenizer)
    kind = gguf.GGMLQuantizationType[(quantize or "f32").upper()]
    quantized = {n for n, array in tensors.items() if quantize and _is_quantized(n, array, quantize, extra_token)}
    if quantize and not quantized:
        raise ValueError(
            f"--quantize {quantize} rounds blocks of 32 numbers, and --n-embd {settings.n_embd} is no multiple of 32. "
            "Use --quantize f16."
        )
    for name, array in tensors.items():
        if name in quantized:
            writer.add_tensor(name, gguf.quants.quantize(array, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, array)
    writer.add_file_type(gguf.LlamaFileType[f"MOSTLY_{quantize.upper()}" if quantize else "ALL_F32"])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    storage.write_file(folder / "Modelfile", modelfile(FILE, settings.block_size, tokenizer))


def _architecture(settings: ModelSettings) -> Family:
    """llama.cpp's. Raises ValueError if it lacks something that transformers' has."""
    family = family_of(settings)
    if family == "qwen3" and any(settings.biases):
        raise ValueError("llama.cpp has no Qwen3 with biases in attention. Use --to huggingface or --to onnx.")
    if family == "qwen3" and settings.rope_scaling.startswith("llama3"):
        raise ValueError("llama.cpp scales rotations as Llama 3 only in a Llama. Use --to huggingface or --to onnx.")
    if any(0 < window < settings.block_size for window in settings.windows):
        raise ValueError(
            "llama.cpp has no sliding windows in a Llama, Mistral or Qwen. Use --to huggingface or --to onnx."
        )
    return "llama" if family in ("qwen2", "mistral") else family


def _paired(tensors: gguf_eos.Tensors, settings: ModelSettings, undo: bool = False) -> gguf_eos.Tensors:
    """Reorder the rows of queries and keys: in a Llama, llama.cpp rotates neighbouring channels, not halves."""
    paired, half = dict(tensors), settings.head_dim // 2
    for name, array in tensors.items():
        if name.rpartition(".")[0].endswith(("attn_q", "attn_k")):
            parts = (-1, half, 2) if undo else (-1, 2, half)
            paired[name] = array.reshape(*parts, *array.shape[1:]).swapaxes(1, 2).reshape(array.shape)
    return paired


def _is_quantized(name: str, array: npt.NDArray[np.float32], quantize: str, extra_token: bool) -> bool:
    """True for matrices. Not for embedding and head if a token was added: their values differ too much in size."""
    if array.ndim < 2 or name == "position_embd.weight" or (array.shape[1] % 32 and quantize != "f16"):
        return False
    return not (extra_token and name in ("token_embd.weight", "output.weight"))


def _end(tokenizer: Tokenizer) -> int | None:
    """The token that ends a text, or else a turn of a chat. None: one is added, see gguf_eos."""
    return next(iter(tokenizer.end_ids), None) if tokenizer.end_of_text_id is None else tokenizer.end_of_text_id


def _add_tokenizer(writer: Any, tokenizer: Tokenizer) -> None:
    definition, end, start = tokenizer.to_huggingface(), _end(tokenizer), tokenizer.start_of_text_id
    pre_tokenizer, tokens, merges = _as_bpe(tokenizer, definition)
    types = [_NORMAL] * len(tokens)
    for token in definition["added_tokens"]:
        i = token["id"]
        tokens[i], types[i] = token["content"], _CONTROL if token["special"] else _USER_DEFINED
    if pre_tokenizer is None:
        _add_sentencepiece(writer, tokenizer, definition["model"], tokens, types)
    else:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(pre_tokenizer)
        writer.add_token_merges([" ".join(pair) for pair in merges or [_NO_MERGE]])
    if end is None:  # see gguf_eos
        end = len(tokens)
        tokens.append(END_OF_TEXT)
        types.append(_CONTROL)
    for i, token in enumerate(tokens):
        if not token:
            tokens[i], types[i] = f"[UNUSED{i}]", _UNUSED
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_bos_token_id(end if start is None else start)
    writer.add_eos_token_id(end)
    writer.add_add_bos_token(start is not None)
    writer.add_add_eos_token(False)
    if isinstance(tokenizer, ChatTokenizer):
        writer.add_eot_token_id(tokenizer.end_of_turn_id)
        # Its template language has no {% generation %}.
        writer.add_chat_template(re.sub(r"\{%-?\s*(end)?generation\s*-?%\}", "", tokenizer.template))


def _add_sentencepiece(writer: Any, tokenizer: Tokenizer, model: Any, tokens: list[str], types: list[int]) -> None:
    """llama.cpp's "llama": characters with ▁ for the space, and bytes. Of two merges, it takes the one with the higher
    score, so scores are the order of the merges."""
    ranks: dict[str, int] = {}
    for rank, pair in enumerate(model["merges"]):
        ranks.setdefault("".join(pair.split(" ") if isinstance(pair, str) else pair), rank)
    scores = [float(-ranks.get(token, len(ranks))) for token in tokens] + [0.0] * (_end(tokenizer) is None)
    for i, token in enumerate(tokens):
        if types[i] == _NORMAL and re.fullmatch("<0x[0-9A-F]{2}>", token):
            types[i] = _BYTE
        elif token == model.get("unk_token"):
            types[i] = _UNKNOWN
            writer.add_unk_token_id(i)
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_scores(scores)
    writer.add_add_space_prefix(_is_spaced(tokenizer))


def _is_spaced(tokenizer: Tokenizer) -> bool:
    """Whether the tokenizer puts a space before each text."""
    return tokenizer.decode_bytes(tokenizer.encode("a", "skip")).startswith(b" ")


def _as_bpe(tokenizer: Tokenizer, definition: dict[str, Any]) -> tuple[str | None, list[str], list[tuple[str, str]]]:
    """llama.cpp's name for the pre-tokenizer, the tokens by id in GPT-2's byte letters, and the merges. The name is
    None for tokenizers that come from SentencePiece, whose tokens are in plain letters.

    Raises ValueError if llama.cpp's BPE cannot do what the tokenizer does.
    """
    base = tokenizer.base if isinstance(tokenizer, ChatTokenizer) else tokenizer
    if base.kind in ("char", "byte"):
        tokens = ["".join(BYTE_LETTERS[byte] for byte in piece) for piece in tokenizer.pieces]
        # Join bytes from left to right, shorter prefixes first, so that no other merge can interfere.
        pairs = {(token[:i], token[i]): None for token in tokens for i in range(1, len(token))}
        return "gpt-2", tokens, sorted(pairs, key=lambda pair: len(pair[0]))
    model, steps = definition["model"], steps_of(definition.get("pre_tokenizer"))
    pre_tokenizer = _pre_tokenizer(steps)
    sentencepiece = model.get("byte_fallback") and all(step.get("type") == "Metaspace" for step in steps)
    supported = sentencepiece or (pre_tokenizer is not None and not _is_spaced(tokenizer))
    supported = supported and bool(model.get("ignore_merges")) == (pre_tokenizer == "llama-bpe")
    if model.get("type") != "BPE" or not supported:
        raise ValueError(
            "llama.cpp has no equivalent of this model's tokenizer. GGUF export supports characters, bytes, "
            "SentencePiece's BPE, and byte-level BPE with the pre-tokenizer of GPT-2, Qwen, Llama 3 or SmolLM."
        )
    tokens = [""] * tokenizer.vocab_size
    for token, i in model["vocab"].items():
        tokens[i] = token
    merges = [tuple(pair.split(" ") if isinstance(pair, str) else pair) for pair in model["merges"]]
    return pre_tokenizer, tokens, merges


def _pre_tokenizer(steps: list[dict[str, Any]]) -> str | None:
    """llama.cpp's name for a pre-tokenizer of the library tokenizers. None if it has none."""
    types, uses_regex = [step.get("type") for step in steps], bool(steps) and steps[-1].get("use_regex", True)
    if types == ["ByteLevel"] and uses_regex:
        return "gpt-2"
    if types == ["Digits", "ByteLevel"] and uses_regex and steps[0].get("individual_digits"):
        return "smollm"
    if types == ["Split", "ByteLevel"] and not uses_regex:
        words = (steps[0].get("pattern") or {}).get("Regex")
        return "qwen2" if words == QWEN_WORDS else "llama-bpe" if words == _LLAMA3_WORDS else None
    return None


def engine(folder: Path, model: GPT, tokenizer: Tokenizer) -> LlamaCpp | ReadBack:
    """llama.cpp if it is installed, else the tensors read back from the file."""
    extra_token = _end(tokenizer) is None
    try:
        import llama_cpp
    except ImportError:
        return ReadBack(folder, model, extra_token)
    return LlamaCpp(llama_cpp, folder, model, extra_token)


class LlamaCpp:
    """llama.cpp on the CPU, through its Python package."""

    def __init__(self, package: Any, folder: Path, model: GPT, extra_token: bool) -> None:
        self.name = f"llama.cpp (llama-cpp-python {package.__version__})"
        # llama.cpp looks GELU up in a table of 16-bit numbers. It computes everything else in float32.
        self.tolerance = 0.05 if model.config.mlp == "gelu" else 2e-3
        self._formatter = package.llama_chat_format.Jinja2ChatFormatter
        self._extra_token, T = extra_token, model.config.block_size
        package.llama_log_set(_silence(package), None)  # it would warn about contexts shorter than 256
        self._llama = package.Llama(
            str(folder / FILE), n_ctx=T, n_batch=T, n_ubatch=T, n_gpu_layers=0, logits_all=True, verbose=False,
            type_k=package.GGML_TYPE_F32, type_v=package.GGML_TYPE_F32, use_mmap=False,
            n_threads=torch.get_num_threads(), n_threads_batch=torch.get_num_threads(),
        )  # fmt: skip

    def logits(self, ids: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """(T,) -> (T, V). All NaN if the added end-of-text token is likely at any position."""
        self._llama.reset()
        self._llama.eval(ids.tolist())
        logits: npt.NDArray[np.float32] = np.array(self._llama.scores[: len(ids)], dtype=np.float32)
        if not self._extra_token:
            return logits
        if not gguf_eos.is_unlikely(logits):
            logits[:] = np.nan  # generated texts could end anywhere
        return logits[:, :-1]

    def greedy(self, ids: list[int], n: int) -> list[int]:
        self._llama.reset()
        return list(islice(self._llama.generate(ids, temp=0.0, top_k=1, repeat_penalty=1.0), n))

    def encode(self, text: str) -> list[int] | None:
        return list(self._llama.tokenize(text.encode(), add_bos=False, special=False))

    def encode_chat(self, messages: Sequence[Message], add_generation_prompt: bool) -> list[int]:
        """The token ids of a chat, by the template in the file."""
        bos, eos = (
            self._llama.detokenize([token()], special=True).decode()
            for token in (self._llama.token_bos, self._llama.token_eos)
        )
        template = self._llama.metadata["tokenizer.chat_template"]
        formatter = self._formatter(template, eos, bos, add_generation_prompt)
        text = formatter(messages=[as_openai(message) for message in messages]).prompt
        return list(self._llama.tokenize(text.encode(), add_bos=False, special=True))


@cache
def _silence(package: Any) -> Any:
    """A log callback that prints nothing. Cached, because llama.cpp may call it for as long as this process lives."""
    return package.llama_log_callback(lambda *_: None)


class ReadBack:
    """Our model with the tensors from the file. Without llama.cpp, all it can show is that the file's numbers are
    right."""

    name = "groundling with the tensors of the GGUF file (llama.cpp is not installed here and did not run)"
    tolerance = 1e-4

    def __init__(self, folder: Path, model: GPT, extra_token: bool) -> None:
        import gguf

        tensors: gguf_eos.Tensors = {
            t.name: np.asarray(gguf.quants.dequantize(t.data, t.tensor_type), dtype=np.float32).copy()
            for t in gguf.GGUFReader(folder / FILE).tensors
        }
        tensors.pop(_ROPE_FACTORS, None)
        architecture = _architecture(model.config)
        if architecture == "llama":
            tensors = _paired(tensors, model.config, undo=True)
        if extra_token:
            tensors = gguf_eos.without(tensors)
            if model.config.tie_head:
                del tensors["output.weight"]
        self._model = GPT(model.config, model.vocab_size).eval()
        weights = {name: torch.from_numpy(array) for name, array in tensors.items()}
        from_external(self._model, _NAMES[architecture], weights)

    def logits(self, ids: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        with torch.inference_mode():
            return self._model(torch.from_numpy(ids[None]))[0].numpy()

    def greedy(self, ids: list[int], n: int) -> list[int]:
        return list(generate(self._model, ids, n, Sampling(temperature=0)))

    def encode(self, text: str) -> list[int] | None:
        return None
