"""Does a page compute the same as the model? A page is read here as a browser reads it, and computed in NumPy."""

from __future__ import annotations

import base64
import copy
import json
import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from groundling.config import Sampling
from groundling.data.corpus import Corpus
from groundling.data.mixture import Mixture, parts_of
from groundling.inference.engine import generate
from groundling.inference.stream import start_ids
from groundling.model.gpt import GPT
from groundling.run.folder import RunFolder
from groundling.run.run_text import RunText
from groundling.run.share.weights import rounded, unpack

_WINDOWS, _LONGEST_WINDOW = 4, 512
_DIFFERENCE = 1e-3  # of logits, in nats: float32 like ours, but sums in another order
_LOSS = 0.02  # nats per token that 8 bits may cost, as for the quantized exports

_F32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Checked:
    """What was compared, and the differences: of logits between the page and the model with rounded weights, and the
    losses of the page and of the model, in nats per token."""

    tokens: int
    source: str
    difference: float
    loss: float
    page_loss: float

    @property
    def sentence(self) -> str:
        return (
            f"Checked on {self.tokens:,} tokens of {self.source}: with weights in 8 bits, the loss is "
            f"{self.page_loss:.4f} instead of {self.loss:.4f}."
        )


@torch.inference_mode()
def check(page: str, model: GPT, windows: npt.NDArray[np.int64], source: str) -> Checked:
    """Compare a page with `model` on `windows`, (n, T + 1) token ids from `source`.

    Raises ValueError if the page computes something else than the model with its weights in 8 bits, or if these make
    the model worse.
    """
    shared, exact = SharedPage(page), copy.deepcopy(model).cpu().eval()
    exact.load_state_dict(rounded(exact.state_dict()))
    difference, losses = 0.0, np.zeros(2)
    for window in windows:
        tokens, targets = torch.from_numpy(window[None, :-1]), torch.from_numpy(window[1:])
        theirs = torch.from_numpy(shared.logits(window[:-1]))
        ours = model(tokens.to(model.device))[0].float().cpu()
        difference = max(difference, float((theirs - exact(tokens)[0]).abs().max().nan_to_num(nan=np.inf)))
        losses += [float(F.cross_entropy(logits, targets)) / len(windows) for logits in (ours, theirs)]
    if not difference <= _DIFFERENCE:
        raise ValueError(
            f"The page does not compute the same as the model: its logits differ by {difference:.2g}, and at most "
            f"{_DIFFERENCE:g} is allowed. Nothing was written."
        )
    loss, page_loss = losses.tolist()
    if not page_loss - loss <= _LOSS:
        raise ValueError(
            f"The weights of this model cannot be rounded to 8 bits: its loss would be {page_loss:.4f} instead of "
            f"{loss:.4f}, and at most {_LOSS} more is allowed. Nothing was written."
        )
    return Checked(windows[:, :-1].size, source, difference, loss, page_loss)


def windows_to_check(run: RunFolder) -> tuple[npt.NDArray[np.int64], str]:
    """Evenly spread windows of the validation text, (n, T + 1), and what they are. If that is gone, one window of text
    that the model generates: random tokens would say little about rounded weights."""
    T = min(run.config.model.block_size, _LONGEST_WINDOW)
    if not run.record.imported:
        try:
            data = RunText(run.reference, run.folder, run.record.corpus, run.config, run.tokenizer).open()
        except ValueError:  # the text is gone, or has changed
            data = None
        if isinstance(data, Corpus | Mixture) and len(text := parts_of(data)[0].corpus.validation) > 1:
            T = min(T, len(text) - 1)
            starts = np.unique(np.linspace(0, len(text) - T - 1, _WINDOWS).astype(np.int64))
            return text.windows(starts, T + 1), "the validation text"
    start = start_ids(run.tokenizer, run.record.corpus.documents)[:1]
    return np.array(
        [[*start, *generate(run.model, start, T, Sampling(temperature=1, seed=0))]]
    ), "text that it generates"


class SharedPage:
    """The model of a page, in NumPy: what model.js computes, for all tokens at once."""

    def __init__(self, page: str) -> None:
        data = json.loads(_element(page, "data"))
        self.config: dict[str, Any] = data["model"]
        self.tensors = unpack(data["shapes"], base64.b64decode(_element(page, "weights"), validate=True))

    def logits(self, ids: npt.NDArray[np.int64]) -> _F32:
        """(T,) -> (T, V)."""
        w = self.tensors
        x = w["wte.weight"][ids]
        if "wpe.weight" in w:
            x = x + w["wpe.weight"][: len(ids)]
        for i, window in enumerate(self.config["windows"]):
            x = x + self._attention(f"h.{i}.attn", self._norm(x, f"h.{i}.ln_1"), window)
            x = x + self._mlp(f"h.{i}.mlp", self._norm(x, f"h.{i}.ln_2"))
        result: _F32 = self._norm(x, "ln_f") @ w.get("lm_head.weight", w["wte.weight"]).T
        return result

    def _linear(self, x: _F32, name: str) -> _F32:
        return x @ self.tensors[f"{name}.weight"].T + self.tensors.get(f"{name}.bias", np.float32(0))

    def _norm(self, x: _F32, name: str) -> _F32:
        if self.config["norm"] == "layernorm":
            x = x - x.mean(-1, keepdims=True)
        x = x / np.sqrt((x * x).mean(-1, keepdims=True) + np.float32(self.config["epsilon"]))
        return x * self.tensors[f"{name}.weight"] + self.tensors.get(f"{name}.bias", np.float32(0))

    def _attention(self, name: str, x: _F32, window: int) -> _F32:
        c, T = self.config, len(x)
        heads = self._linear(x, f"{name}.c_attn").reshape(T, -1, c["headSize"]).transpose(1, 0, 2)
        q, k, v = np.split(heads, [c["heads"], c["heads"] + c["kvHeads"]])
        if c["frequencies"]:
            q, k = self._rotated(q, f"{name}.rope.q_norm"), self._rotated(k, f"{name}.rope.k_norm")
        k, v = (each.repeat(c["heads"] // c["kvHeads"], axis=0) for each in (k, v))
        scores = q @ k.transpose(0, 2, 1) / np.float32(np.sqrt(c["headSize"]))  # (heads, T, T)
        distance = np.arange(T)[:, None] - np.arange(T)
        scores[:, (distance < 0) | (distance >= (window or T))] = -np.inf
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        y = weights / weights.sum(-1, keepdims=True) @ v
        return self._linear(y.transpose(1, 0, 2).reshape(T, -1), f"{name}.c_proj")

    def _rotated(self, x: _F32, norm: str) -> _F32:
        c = self.config
        if f"{norm}.weight" in self.tensors:
            x = x / np.sqrt((x * x).mean(-1, keepdims=True) + np.float32(c["qkEpsilon"]))
            x = x * self.tensors[f"{norm}.weight"]
        angles = np.outer(np.arange(x.shape[1]), c["frequencies"])
        cos, sin = (c["ropeScale"] * part(angles) for part in (np.cos, np.sin))
        a, b = np.split(x, 2, axis=-1)
        return np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(np.float32)

    def _mlp(self, name: str, x: _F32) -> _F32:
        x = self._linear(x, f"{name}.c_fc")
        if self.config["mlp"] == "swiglu":
            gate, value = np.split(x, 2, axis=-1)
            x = gate / (1 + np.exp(-gate)) * value
        else:
            x = 0.5 * x * (1 + np.tanh(np.float32(np.sqrt(2 / np.pi)) * (x + np.float32(0.044715) * x**3)))
        return self._linear(x, f"{name}.c_proj")


def _element(page: str, name: str) -> str:
    """The text of a `<script id=...>` that is data."""
    found = re.search(rf'<script id="{name}" [^>]*>(.*?)</script>', page, re.DOTALL)
    assert found, name
    return found[1]
