"""Hugging Face format: config.json, model.safetensors and tokenizer.json in one folder.

The gpt2 family is GPT2LMHeadModel there, and qwen3 is Qwen3ForCausalLM. What import reads is in read_config.py.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import save_file

from groundling import storage
from groundling.config import ModelSettings
from groundling.data.conversations import Message
from groundling.data.tokenizers.base import END_OF_TEXT, Tokenizer
from groundling.data.tokenizers.chat import ChatTokenizer
from groundling.data.tokenizers.chat_template import as_openai
from groundling.interchange.weight_names import Family, Names, family_of, to_external
from groundling.model.gpt import GPT

QUANTIZATIONS = {"f16": torch.float16, "bf16": torch.bfloat16}

_LLAMA = {
    "wte": "model.embed_tokens", "h": "model.layers.{}", "ln_f": "model.norm",
    "ln_1": "input_layernorm", "ln_2": "post_attention_layernorm",
    "attn.c_attn": "self_attn.q_proj self_attn.k_proj self_attn.v_proj", "attn.c_proj": "self_attn.o_proj",
    "mlp.c_fc": "mlp.gate_proj mlp.up_proj", "mlp.c_proj": "mlp.down_proj",
}  # fmt: skip
NAMES: dict[Family, Names] = {
    "gpt2": {
        "wte": "transformer.wte", "wpe": "transformer.wpe", "h": "transformer.h.{}", "ln_f": "transformer.ln_f",
    },
    "qwen3": _LLAMA | {"attn.rope.q_norm": "self_attn.q_norm", "attn.rope.k_norm": "self_attn.k_norm"},
    "qwen2": _LLAMA, "llama": _LLAMA, "mistral": _LLAMA,
}  # fmt: skip
ARCHITECTURES: dict[Family, str] = {
    "gpt2": "GPT2LMHeadModel", "qwen3": "Qwen3ForCausalLM", "qwen2": "Qwen2ForCausalLM", "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
}  # fmt: skip
"""A family's name is also its `model_type` in config.json."""
ROPE_SCALINGS = {
    "none": (), "linear": ("factor",), "yarn": ("factor", "original_max_position_embeddings"),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
}  # fmt: skip
"""What the numbers of `--rope-scaling` are called in config.json."""


def transposed(tensors: Mapping[str, torch.Tensor], family: Family) -> dict[str, torch.Tensor]:
    """Transpose the four matrices of each GPT-2 block: the format stores inputs as rows, as TensorFlow did. Calling it
    again undoes it."""
    matrices = ("c_attn.weight", "c_proj.weight", "c_fc.weight")
    return {
        name: tensor.T.contiguous() if family == "gpt2" and name.endswith(matrices) and tensor.dim() == 2 else tensor
        for name, tensor in tensors.items()
    }


def write(
    folder: Path, model: GPT, tokenizer: Tokenizer, quantize: str | None = None, imported: str | None = None
) -> None:
    """Write the model and its tokenizer to `folder`, with weights in float32 or as `quantize` says. `imported` is the
    architecture that it was imported as."""
    family = family_of(model.config, imported)
    dtype = QUANTIZATIONS[quantize] if quantize else torch.float32
    tensors = transposed(to_external(model, NAMES[family]), family)
    # Older versions of transformers require the metadata entry "format".
    save_file({n: t.to(dtype) for n, t in tensors.items()}, folder / "model.safetensors", {"format": "pt"})
    ends = list(tokenizer.end_ids)
    start = tokenizer.end_of_text_id if tokenizer.start_of_text_id is None else tokenizer.start_of_text_id
    config = {"model_type": family} | _config(model.config, family) | {
        "architectures": [ARCHITECTURES[family]], "vocab_size": model.vocab_size,
        "tie_word_embeddings": model.config.tie_head,
        "bos_token_id": start, "eos_token_id": ends if len(ends) > 1 else ends[0] if ends else None,
        "dtype": str(dtype).removeprefix("torch."), "torch_dtype": str(dtype).removeprefix("torch."),
    }  # fmt: skip
    storage.write_json(folder / "config.json", config)
    if isinstance(tokenizer, ChatTokenizer):  # generation stops at any of the ends
        storage.write_json(folder / "generation_config.json", {"bos_token_id": start, "eos_token_id": ends})
    write_tokenizer(folder, tokenizer, model.config.block_size)


def write_tokenizer(folder: Path, tokenizer: Tokenizer, block_size: int) -> None:
    """Write tokenizer.json, and tokenizer_config.json for AutoTokenizer, with the chat template if there is one."""
    definition = tokenizer.to_huggingface()
    storage.write_json(folder / "tokenizer.json", definition)
    config: dict[str, Any] = {}
    added = {token["id"]: token["content"] for token in definition["added_tokens"]}
    if tokenizer.end_of_text_id is not None:
        config["bos_token"] = config["eos_token"] = added.get(tokenizer.end_of_text_id, END_OF_TEXT)
    if tokenizer.start_of_text_id is not None:
        config["bos_token"] = added[tokenizer.start_of_text_id]
    if isinstance(tokenizer, ChatTokenizer):
        config |= {"eos_token": added[tokenizer.end_of_turn_id]} | tokenizer.names
        config["chat_template"] = tokenizer.template
    config["tokenizer_class"] = "PreTrainedTokenizerFast"  # uses tokenizer.json as it is
    config |= {"model_max_length": block_size, "clean_up_tokenization_spaces": False}
    storage.write_json(folder / "tokenizer_config.json", config)


def _config(model: ModelSettings, family: Family) -> dict[str, Any]:
    if family == "gpt2":
        return {
            "n_positions": model.block_size, "n_embd": model.n_embd, "n_layer": model.n_layer,
            "n_head": model.n_head, "n_inner": model.n_hidden, "activation_function": "gelu_new",
            "layer_norm_epsilon": model.epsilon, "resid_pdrop": model.dropout, "embd_pdrop": model.dropout,
            "attn_pdrop": 0.0,
        }  # fmt: skip
    kind, (qkv_bias, _, mlp_bias) = model.rope_scaling.partition(":")[0], model.biases
    rope: dict[str, Any] = {"rope_type": "default" if kind == "none" else kind}
    rope |= {
        name: int(n) if name.startswith("original") else n
        for name, n in zip(ROPE_SCALINGS[kind], model.rope_factors, strict=True)
    }
    of_family: dict[Family, dict[str, Any]] = {
        "qwen3": {"attention_bias": qkv_bias, **_windows(model)},
        "qwen2": _windows(model),
        "llama": {"attention_bias": qkv_bias, "mlp_bias": mlp_bias},
        "mistral": {"sliding_window": model.sliding_window or None},
    }
    return of_family[family] | {
        "max_position_embeddings": model.block_size, "hidden_size": model.n_embd,
        "intermediate_size": model.n_hidden, "num_hidden_layers": model.n_layer,
        "num_attention_heads": model.n_head, "num_key_value_heads": model.kv_heads, "head_dim": model.head_dim,
        "hidden_act": "silu", "rms_norm_eps": model.epsilon, "attention_dropout": 0.0,
        # transformers 4 reads the first two entries, transformers 5 the third.
        "rope_theta": model.rope_theta, "rope_scaling": None if kind == "none" else rope,
        "rope_parameters": rope | {"rope_theta": model.rope_theta},
    }  # fmt: skip


def _windows(model: ModelSettings) -> dict[str, Any]:
    """The layers of a Qwen that slide. Before `layer_types`, they were all from `max_window_layers` on."""
    if not model.sliding_window:
        return {"use_sliding_window": False}
    return {
        "use_sliding_window": True, "sliding_window": model.sliding_window,
        "max_window_layers": [*model.windows, model.sliding_window].index(model.sliding_window),
        "layer_types": ["sliding_attention" if window else "full_attention" for window in model.windows],
    }  # fmt: skip


class Transformers:
    """transformers, on a folder that `write` made."""

    tolerance = 1e-3  # both compute in float32 with PyTorch, but sum in another order

    def __init__(self, folder: Path) -> None:
        try:
            import transformers
        except ImportError:
            raise ValueError(
                'transformers is missing, which checks the export. Install it: pip install "groundling[export]".'
            ) from None
        self.name = f"transformers {transformers.__version__}"
        logging.getLogger("transformers").setLevel(logging.ERROR)
        transformers.utils.logging.disable_progress_bar()  # loading takes a moment
        self._config = transformers.GenerationConfig
        self._model = transformers.AutoModelForCausalLM.from_pretrained(folder, local_files_only=True).float().eval()
        self._tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)

    def logits(self, ids: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        with torch.inference_mode():
            return self._model(torch.from_numpy(ids[None])).logits[0].float().numpy()

    def greedy(self, ids: list[int], n: int) -> list[int]:
        self._model.generation_config = self._config(
            do_sample=False, max_new_tokens=n, eos_token_id=None, pad_token_id=0
        )
        prompt = torch.tensor([ids])
        return self._model.generate(prompt, attention_mask=torch.ones_like(prompt))[0, len(ids) :].tolist()

    def encode(self, text: str) -> list[int] | None:
        return list(self._tokenizer.encode(text, add_special_tokens=False))

    def encode_chat(self, messages: Sequence[Message], add_generation_prompt: bool) -> list[int]:
        given = [as_openai(message) for message in messages]
        text = self._tokenizer.apply_chat_template(given, add_generation_prompt=add_generation_prompt, tokenize=False)
        return list(self._tokenizer(text, add_special_tokens=False).input_ids)
