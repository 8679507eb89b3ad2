"""An end-of-text token for models that have none, because llama.cpp requires one.

A model of the characters of a single document never learned how a text ends. If a GGUF file names no such token,
llama.cpp takes token 11, whatever character that is, and stops there. So the export adds one token, with weights that
always give it a logit far below all others. All other logits stay the same. This is exact algebra, nothing is fitted.

Tensors are NumPy arrays under llama.cpp's names. C is the width, g and b are the weight and bias of the last norm.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

Tensors = dict[str, npt.NDArray[np.float32]]

_CHANNELS = 32  # the block size of quantized formats
_MARGIN = 20.0  # nats: the new token must be less likely than e^-20
_READERS = ("attn_q.weight", "attn_k.weight", "attn_v.weight", "ffn_gate.weight", "ffn_up.weight")
_WRITERS = ("attn_output.weight", "ffn_down.weight", "attn_output.bias", "ffn_down.bias")
_NORMS = ("attn_norm.weight", "ffn_norm.weight", "output_norm.weight")


def with_layer_norm(tensors: Tensors) -> Tensors:
    """Add the token to a GPT-2.

    The last LayerNorm outputs g n + b, where n sums to 0. A row of the head that is r / g has the dot product
    r sum(n) + r sum(b / g) with it. The first term is 0, so the logit is a constant, and r sets it to -1000.

    Raises ValueError if the constant cannot be set, because the biases b are still (almost) 0.
    """
    g, b = (tensors[f"output_norm.{kind}"].astype(np.float64) for kind in ("weight", "bias"))
    with np.errstate(all="ignore"):
        row = -1000 / g / (b / g).sum()
    if not np.isfinite(row).all() or np.abs(row).max() > 60_000:  # float16 reaches 65,504
        raise ValueError("This model's biases are still almost 0. Train it further before you export it to GGUF.")
    head = tensors.get("output.weight", tensors["token_embd.weight"])
    return tensors | {
        "token_embd.weight": _append(tensors["token_embd.weight"], np.zeros_like(row)),
        "output.weight": _append(head, row),
    }


def with_rms_norm(tensors: Tensors, epsilon: float) -> tuple[Tensors, float]:
    """Add the token to a model with RMSNorm, and 32 channels to its width. Also returns the new epsilon of RMSNorm.

    There is no bias here, so the constant comes from the new channels. Each holds c in every embedding, and no block
    reads or changes them. Only the head's new row reads them, so its logit is far below 0 at every position.

    RMSNorm, x / √(Σx²/C + ε), must not change for the old channels. With a smaller ε', it does not if
    32c² + (C + 32) ε' = C ε. We give each term half of C ε. √(C / (C + 32)) in the norms' weights corrects the mean,
    which is now over C + 32 channels.
    """
    C = tensors["output_norm.weight"].size
    constant = math.sqrt(C * epsilon / 2 / _CHANNELS)
    shrink = math.sqrt(C / (C + _CHANNELS))

    def widen(name: str, tensor: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        if name.endswith(_READERS) or name == "output.weight":
            return np.pad(tensor, ((0, 0), (0, _CHANNELS)))
        if name.endswith(_WRITERS):
            return np.pad(tensor, ((0, _CHANNELS),) + ((0, 0),) * (tensor.ndim - 1))
        if name.endswith(_NORMS):
            return np.pad(tensor * np.float32(shrink), (0, _CHANNELS))
        return tensor

    head = tensors.get("output.weight", tensors["token_embd.weight"])
    wide = {name: widen(name, tensor) for name, tensor in (tensors | {"output.weight": head}).items()}
    embedding = np.pad(tensors["token_embd.weight"], ((0, 1), (0, 0)))
    wide["token_embd.weight"] = np.pad(embedding, ((0, 0), (0, _CHANNELS)), constant_values=constant)
    wide["output_norm.weight"][C:] = 1000
    row = np.zeros(C + _CHANNELS)
    row[C:] = -30_000  # fits in float16
    wide["output.weight"] = _append(wide["output.weight"], row)
    return wide, epsilon * C / 2 / (C + _CHANNELS)


def without(tensors: Tensors) -> Tensors:
    """Undo `with_layer_norm` or `with_rms_norm`. A tied head stays a separate tensor."""
    tensors = tensors | {name: tensors[name][:-1] for name in ("token_embd.weight", "output.weight")}
    if "output_norm.bias" in tensors:
        return tensors
    C = tensors["output_norm.weight"].size - _CHANNELS
    for name, array in tensors.items():
        if name.endswith(_READERS) or name in ("output.weight", "token_embd.weight"):
            tensors[name] = array[:, :C]
        elif name.endswith(_WRITERS):
            tensors[name] = array[:C]
        elif name.endswith(_NORMS):
            tensors[name] = array[:C] / np.float32(math.sqrt(C / (C + _CHANNELS)))
    return tensors


def is_unlikely(logits: npt.NDArray[np.float32]) -> bool:
    """Whether the last token, the added one, is practically impossible at every position. Logits (T, V + 1)."""
    return bool((logits[:, -1] < logits[:, :-1].max(1) - _MARGIN).all())


def _append(matrix: npt.NDArray[np.float32], row: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
    return np.concatenate([matrix, row[None].astype(np.float32)])
