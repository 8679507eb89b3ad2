"""A token that ends a text, for a model that has none, in an engine that cannot do without.

A model of the characters of a single document never learned how a text ends. llama.cpp needs a token for that all the
same: where a file names none, it takes number 11, whichever character that is, and stops there. So an export for it
gets one more token, and the weights to give it a logit far below all others, always. All other logits stay as they
were: what follows is exact, not fitted.

Tensors are NumPy arrays under llama.cpp's names. C is the width, g and b are the last norm's weight and bias.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

Tensors = dict[str, npt.NDArray[np.float32]]

_CHANNELS = 32  # as many as quantized formats take together
_BEYOND = 20.0  # nats: the new token has to be less likely than e^-20
_READERS = ("attn_q.weight", "attn_k.weight", "attn_v.weight", "ffn_gate.weight", "ffn_up.weight")
_WRITERS = ("attn_output.weight", "ffn_down.weight")
_NORMS = ("attn_norm.weight", "ffn_norm.weight", "output_norm.weight")


def with_layer_norm(tensors: Tensors) -> Tensors:
    """The tensors of GPT-2's family with one more token.

    What LayerNorm leaves is g n + b, and n adds up to 0. A row of the head that is proportional to 1/g therefore has
    the same logit whatever the model reads: its product with b.

    Raises ValueError if the biases were not trained, and that product is 0.
    """
    g, b = (tensors[f"output_norm.{kind}"].astype(np.float64) for kind in ("weight", "bias"))
    with np.errstate(all="ignore"):
        row = -1000 / g / (b / g).sum()
    if not np.isfinite(row).all() or np.abs(row).max() > 60_000:  # as much as 16 bits hold
        raise ValueError("This model has no biases to speak of: train it further before it is exported to GGUF.")
    head = tensors.get("output.weight", tensors["token_embd.weight"])
    return tensors | {
        "token_embd.weight": _below(tensors["token_embd.weight"], np.zeros_like(row)),
        "output.weight": _below(head, row),
    }


def with_rms_norm(tensors: Tensors, epsilon: float) -> tuple[Tensors, float]:
    """The tensors of the modern family with one more token, 32 channels wider, and RMSNorm's new epsilon.

    x / √(Σx²/C + ε) is the same if the new channels hold a constant c, whose squares and the new, smaller ε' together
    are what ε was: 32c² + (C + 32) ε' = C ε. The blocks neither read nor change the new channels; the head reads
    the constant from them, for the new token alone.
    """
    C = tensors["output_norm.weight"].size
    constant = math.sqrt(C * epsilon / 2 / _CHANNELS)
    shrink = math.sqrt(C / (C + _CHANNELS))

    def wider(name: str, tensor: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        if name.endswith(_READERS) or name == "output.weight":
            return np.pad(tensor, ((0, 0), (0, _CHANNELS)))
        if name.endswith(_WRITERS):
            return np.pad(tensor, ((0, _CHANNELS), (0, 0)))
        if name.endswith(_NORMS):
            return np.pad(tensor * np.float32(shrink), (0, _CHANNELS))
        return tensor

    found = {name: wider(name, tensor) for name, tensor in tensors.items()}
    embedding = np.pad(tensors["token_embd.weight"], ((0, 1), (0, 0)))
    found["token_embd.weight"] = np.pad(embedding, ((0, 0), (0, _CHANNELS)), constant_values=constant)
    found["output_norm.weight"][C:] = 1000
    head = found.get("output.weight", np.pad(tensors["token_embd.weight"], ((0, 0), (0, _CHANNELS))))
    row = np.zeros(C + _CHANNELS)
    row[C:] = -30_000  # 16 bits hold it
    found["output.weight"] = _below(head, row)
    return found, epsilon * C / 2 / (C + _CHANNELS)


def without(tensors: Tensors) -> Tensors:
    """What `with_layer_norm` and `with_rms_norm` were given, from what they made (a tied head as one of its own)."""
    found = {name: array.copy() for name, array in tensors.items()}
    for name in ("token_embd.weight", "output.weight"):
        found[name] = found[name][:-1]
    if "output_norm.bias" in found:
        return found
    C = found["output_norm.weight"].size - _CHANNELS
    for name, array in found.items():
        if name.endswith(_READERS) or name in ("output.weight", "token_embd.weight"):
            found[name] = array[:, :C]
        elif name.endswith(_WRITERS):
            found[name] = array[:C]
        elif name.endswith(_NORMS):
            found[name] = array[:C] / np.float32(math.sqrt(C / (C + _CHANNELS)))
    return found


def is_unlikely(logits: npt.NDArray[np.float32]) -> bool:
    """Whether the last token, the new one, is out of question at every position. Logits (T, V + 1)."""
    return bool((logits[:, -1] < logits[:, :-1].max(1) - _BEYOND).all())


def _below(matrix: npt.NDArray[np.float32], row: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
    return np.concatenate([matrix, row[None].astype(np.float32)])
