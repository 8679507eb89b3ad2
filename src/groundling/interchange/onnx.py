"""ONNX format, for ONNX Runtime and many others: the model's graph, with the tokenizer in a file beside it.

Tokens (batch, time) up to the context length -> logits (batch, time, vocabulary). The graph has no KV cache: each call
reads all its tokens again. That is fine for scoring, and slow for long generation.
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

QUANTIZATIONS = ("int8",)
FILE = "model.onnx"


def write(folder: Path, model: GPT, tokenizer: Tokenizer, quantize: str | None) -> None:
    """Write model.onnx, with weights in float32 or int8, and tokenizer.json."""
    try:
        import onnx
        import onnxruntime.quantization as quantization
        import onnxscript  # noqa: F401  (PyTorch's exporter needs it)
    except ImportError:
        raise ValueError('ONNX export needs three more packages: pip install "groundling[onnx]".') from None
    T = model.config.block_size
    example = torch.zeros(2, max(T // 2, 2), dtype=torch.int64)
    shapes = {"tokens": {0: torch.export.Dim("batch"), 1: torch.export.Dim("time", max=T)}}
    for name in ("torch.onnx", "onnxscript", "onnx_ir"):
        logging.getLogger(name).setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter warns about its own internals
        program = torch.onnx.export(
            model, (example,), dynamo=True, dynamic_shapes=shapes, verbose=False,
            input_names=["tokens"], output_names=["logits"],
        )  # fmt: skip
    assert program is not None
    # A single ONNX file cannot exceed 2 GB.
    program.save(folder / FILE, external_data=4 * sum(p.numel() for p in model.parameters()) > 1.9e9)
    if quantize:
        before = logging.root.manager.disable
        logging.disable(logging.WARNING)  # its advice does not apply to this model
        try:
            quantization.quantize_dynamic(
                onnx.load(folder / FILE), folder / FILE, weight_type=quantization.QuantType.QInt8, per_channel=True
            )
        finally:
            logging.disable(before)
    storage.write_json(folder / "tokenizer.json", tokenizer.to_huggingface())


class OnnxRuntime:
    """ONNX Runtime on the CPU."""

    tolerance = 1e-3  # float32 like ours, but sums in another order

    def __init__(self, folder: Path) -> None:
        import onnxruntime
        import tokenizers

        self.name = f"ONNX Runtime {onnxruntime.__version__}"
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        self._session = onnxruntime.InferenceSession(folder / FILE, options, providers=["CPUExecutionProvider"])
        self._tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))

    def logits(self, ids: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        # A batch of two, to test batches too.
        return self._session.run(["logits"], {"tokens": np.stack([ids, ids])})[0][1]

    def greedy(self, ids: list[int], n: int) -> list[int]:
        tokens = np.array([ids], dtype=np.int64)
        for _ in range(n):
            logits = self._session.run(["logits"], {"tokens": tokens})[0]
            tokens = np.append(tokens, logits[:, -1].argmax(-1)[:, None], axis=1)
        return tokens[0, len(ids) :].tolist()

    def encode(self, text: str) -> list[int] | None:
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)
