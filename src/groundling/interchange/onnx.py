"""ONNX, which ONNX Runtime and many others run: the graph of the model, and the tokenizer beside it.

Tokens (batch, time) of any size up to the context -> logits (batch, time, vocabulary). There is no cache of keys and
values: each call reads its tokens anew, which is right for scoring, and slow for long generation.
"""

from __future__ import annotations

import logging
import warnings
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from groundling import storage
from groundling.data.tokenizers.base import Tokenizer
from groundling.model.gpt import GPT

ROUNDED = ("int8",)
FILE = "model.onnx"
_NEEDED = 'For ONNX, three packages are needed: pip install "groundling[onnx]".'


def write(folder: Path, model: GPT, tokenizer: Tokenizer, quantize: str | None) -> None:
    """Write model.onnx, its weights in float32 or in 8 bits, and tokenizer.json."""
    try:
        import onnx
        import onnxruntime.quantization as quantization
        import onnxscript  # noqa: F401  (the exporter's own need)
    except ImportError:
        raise ValueError(_NEEDED) from None
    T = model.config.block_size
    example = torch.zeros(2, max(T // 2, 2), dtype=torch.int64)
    shapes = {"tokens": {0: torch.export.Dim("batch"), 1: torch.export.Dim("time", max=T)}}
    for name in ("torch.onnx", "onnxscript", "onnx_ir"):
        logging.getLogger(name).setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's, about itself
        program = torch.onnx.export(
            _Plain(model), (example,), dynamo=True, dynamic_shapes=shapes, verbose=False,
            input_names=["tokens"], output_names=["logits"],
        )  # fmt: skip
    assert program is not None
    # Beyond 2 GB a single file is not allowed.
    program.save(folder / FILE, external_data=4 * sum(p.numel() for p in model.parameters()) > 1.9e9)
    if quantize:
        before = logging.root.manager.disable
        logging.disable(logging.WARNING)  # its advice is for other networks than this
        try:
            quantization.quantize_dynamic(
                onnx.load(folder / FILE), folder / FILE, weight_type=quantization.QuantType.QInt8, per_channel=True
            )
        finally:
            logging.disable(before)
    storage.write_json(folder / "tokenizer.json", tokenizer.to_huggingface())


class _Plain(torch.nn.Module):
    """The model with tokens as its only argument."""

    def __init__(self, model: GPT) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.model(tokens)
        return logits


class OnnxRuntime:
    """ONNX Runtime on the CPU."""

    tolerance = 1e-3  # float32 as ours, added up in another order

    def __init__(self, folder: Path) -> None:
        import onnxruntime
        import tokenizers

        self.name = f"ONNX Runtime {onnxruntime.__version__}"
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        self._session = onnxruntime.InferenceSession(folder / FILE, options, providers=["CPUExecutionProvider"])
        self._tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))

    def logits(self, ids: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        # Twice, so that a batch is tried too.
        found: npt.NDArray[np.float32] = self._session.run(["logits"], {"tokens": np.stack([ids, ids])})[0]
        return found[1]

    def greedy(self, ids: list[int], n: int) -> list[int]:
        tokens = np.array([ids], dtype=np.int64)
        for _ in range(n):
            logits = self._session.run(["logits"], {"tokens": tokens})[0]
            tokens = np.append(tokens, logits[:, -1].argmax(-1)[:, None], axis=1)
        return [int(token) for token in tokens[0, len(ids) :]]

    def encode(self, text: str) -> list[int] | None:
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)
