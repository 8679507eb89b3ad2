"""Adapters in the format of PEFT: adapter_config.json and adapter_model.safetensors.

Factors have the same shapes there, (rank, in) and (out, rank). Where the other engine has one matrix for several of
ours, as GPT-2 has for queries, keys and values, their factors become one pair of a multiple of the rank: the A's one
below the other, and the B's on the diagonal of a matrix that is zero elsewhere. That is the same product, also for
DoRA, whose lengths belong to rows.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from groundling import storage
from groundling.interchange.huggingface import NAMES, Transformers, transposed
from groundling.interchange.weight_names import Family, external_modules, to_external
from groundling.model.adapter import Adapter, LowRank, with_row_norms
from groundling.model.gpt import GPT

QUANTIZATIONS = ()
BASE = "base"
"""The folder, within an exported adapter, of the model that it was trained on."""
CONFIG = "adapter_config.json"

_PREFIX = "base_model.model."
_FACTORS = ("lora_A.weight", "lora_B.weight", "lora_magnitude_vector")
_ROWS = "token_adapter.trainable_tokens_delta"
# Entries that change what is computed, and the values under which that is plain LoRA.
_PLAIN: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",), "init_lora_weights": (True, False, None, "gaussian", "orthogonal"),
    "lora_bias": (False, None), "use_qalora": (False, None), "alora_invocation_tokens": (None,),
    "layer_replication": (None,), "use_bdlora": (None,), "velora_config": (None,), "monteclora_config": (None,),
    "kasa_config": (None,), "arrow_config": (None,),
}  # fmt: skip


def write(folder: Path, adapter: Adapter, family: Family) -> None:
    """Write an adapter of a model of this family. Its model is expected in the subfolder `base`."""
    spec, names = adapter.spec, NAMES[family]
    tensors: dict[str, torch.Tensor] = {}
    ranks: dict[str, int] = {}
    targets: set[str] = set()
    for layer, parts in adapter.layers.items():
        theirs = external_modules(layer, names)
        if len(theirs) == len(parts):
            factors = dict(zip(theirs, map(_factors, parts), strict=True))
        else:
            factors = {theirs[0]: _stacked(parts)}
            ranks[theirs[0].rpartition(".")[2]] = spec.rank * len(parts)
        targets |= {name.rpartition(".")[2] for name in factors}
        tensors |= {f"{_PREFIX}{name}.{kind}": x for name, kinds in factors.items() for kind, x in kinds.items()}
    rows: dict[str, list[int]] = {}
    for table, values in adapter.rows.items():
        (name,) = external_modules(table, names)
        tensors[f"{_PREFIX}{name}.{_ROWS}"] = values
        rows[name.rpartition(".")[2]] = list(range(adapter.vocab_size - len(values), adapter.vocab_size))
    rs = spec.kind == "rslora"

    def alpha(rank: int) -> float:
        value = spec.scale * (math.sqrt(rank) if rs else rank)
        return round(value) if value == round(value) else value

    config = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": BASE, "inference_mode": True,
        "r": spec.rank, "lora_alpha": alpha(spec.rank), "lora_dropout": 0.0, "bias": "none",
        "use_rslora": rs, "use_dora": spec.kind == "dora", "fan_in_fan_out": family == "gpt2",
        "target_modules": sorted(targets), "rank_pattern": ranks,
        "alpha_pattern": {name: alpha(rank) for name, rank in ranks.items()},
        "trainable_token_indices": rows or None,
    }  # fmt: skip
    save_file({n: x.detach().cpu().contiguous() for n, x in tensors.items()}, folder / "adapter_model.safetensors")
    storage.write_json(folder / CONFIG, config)


def _factors(part: LowRank) -> dict[str, torch.Tensor]:
    values = (part.lora_A, part.lora_B, part.magnitude)
    return {name: value for name, value in zip(_FACTORS, values, strict=True) if value is not None}


def _stacked(parts: list[LowRank]) -> dict[str, torch.Tensor]:
    factors = [_factors(part) for part in parts]
    join = {_FACTORS[0]: torch.cat, _FACTORS[1]: lambda each: torch.block_diag(*each), _FACTORS[2]: torch.cat}
    return {kind: join[kind]([each[kind] for each in factors]) for kind in factors[0]}


class Peft(Transformers):
    """PEFT, on a folder with an adapter and its model in the subfolder `base`."""

    def __init__(self, folder: Path) -> None:
        import peft

        super().__init__(folder / BASE)
        self.name = f"PEFT {peft.__version__}"
        self._model = peft.PeftModel.from_pretrained(self._model, folder).eval()


@torch.no_grad()
def read(folder: Path, model: GPT, family: Family) -> None:
    """Merge the adapter in `folder`, which PEFT saved, into its `model`.

    Raises ValueError if the adapter is of another kind, belongs to another model, or is damaged.
    """
    config = storage.read_json(folder / CONFIG)
    if not isinstance(config, dict):
        raise ValueError(f"{folder / CONFIG} is damaged: it is not a JSON object.")
    for name, allowed in _PLAIN.items():
        if (value := config.get(name)) not in allowed:
            raise ValueError(
                f"{folder / CONFIG}: groundling does not support {name} {value!r:.80}. It reads LoRA, rsLoRA and DoRA. "
                "Merge the adapter into its model with PEFT's merge_and_unload, and import the result."
            )
    weights = to_external(model, NAMES[family])  # they share the model's memory
    layers: dict[str, dict[str, torch.Tensor]] = defaultdict(dict)
    for name, tensor in _tensors(folder).items():
        name = name.removeprefix(_PREFIX).replace(".base_layer.", ".")
        module, kind = _split(name)
        if f"{module}.weight" not in weights:
            raise ValueError(
                f"{folder}: {name:.100} does not belong to this model. Give the run of the model that the adapter was "
                "trained on as --base."
            )
        if not tensor.isfinite().all():
            raise ValueError(f"{folder}: the weights {name:.100} contain NaN or infinity.")
        layers[module][kind] = tensor.float()
    if not layers:
        raise ValueError(f"{folder} has no weights of an adapter.")
    try:
        for module, tensors in layers.items():
            _apply(module, tensors, weights, config, family)
    except (KeyError, TypeError, ValueError, RuntimeError, IndexError) as error:
        raise ValueError(f"{folder}: the adapter's {module} does not fit this model: {error!s:.200}.") from None


def _tensors(folder: Path) -> dict[str, torch.Tensor]:
    file = folder / "adapter_model.safetensors"
    if not file.is_file():
        raise FileNotFoundError(f"{file} does not exist. Save the adapter with PEFT's save_pretrained, as safetensors.")
    try:
        return load_file(file)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{file} cannot be read: {error!s:.200}.") from None


def _split(name: str) -> tuple[str, str]:
    """A tensor's module, and what of it the tensor is."""
    name = name.replace("lora_magnitude_vector.weight", "lora_magnitude_vector")  # as it is in memory
    kinds = (kind for kind in (*_FACTORS, _ROWS, "weight", "bias") if name.endswith(f".{kind}"))
    kind = next(kinds, "")
    return name.removesuffix(f".{kind}"), kind


def _apply(
    module: str,
    tensors: dict[str, torch.Tensor],
    weights: dict[str, torch.Tensor],
    config: dict[str, Any],
    family: Family,
) -> None:
    """Change the weights of one module in place."""
    weight = weights[f"{module}.weight"]
    whole = {f"{module}.{kind}": tensor for kind, tensor in tensors.items() if kind in ("weight", "bias")}
    for name, tensor in transposed(whole, family).items():  # modules_to_save, and biases
        weights[name].copy_(_checked(tensor, weights[name].shape))
    if _ROWS in tensors:
        rows = torch.tensor(_token_indices(config, module))
        weight[rows] = _checked(tensors[_ROWS], (len(rows), weight.size(1)))
    if tensors.keys() & set(_FACTORS):
        a, b = tensors[_FACTORS[0]], tensors[_FACTORS[1]]
        rank = a.size(0)
        scale = _alpha(config, module) / (math.sqrt(rank) if config.get("use_rslora") else rank)
        changed = weight + _checked(scale * (b @ a), weight.shape)
        if config.get("use_dora"):
            changed = with_row_norms(changed, _checked(tensors[_FACTORS[2]], (weight.size(0),)))
        weight.copy_(changed)


def _checked(tensor: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    if tuple(tensor.shape) != tuple(shape):
        raise ValueError(f"its shape is {tuple(tensor.shape)}, not {tuple(shape)}")
    return tensor


def _alpha(config: dict[str, Any], module: str) -> float:
    for pattern, alpha in (config.get("alpha_pattern") or {}).items():
        if not re.fullmatch(r"\^?[\w.]+", pattern):  # any regular expression may stand there; some take forever
            raise ValueError(f"its alpha_pattern {pattern!r:.80} is no module's name")
        if re.match(rf"(.*\.)?({pattern})$", module):
            return float(alpha)
    return float(config["lora_alpha"])


def _token_indices(config: dict[str, Any], module: str) -> list[int]:
    given = config["trainable_token_indices"]
    if isinstance(given, dict):
        given = next(rows for name, rows in given.items() if f".{module}".endswith(f".{name}"))
    if not all(type(row) is int and row >= 0 for row in given):
        raise ValueError("its token indices are not whole numbers")
    return list(given)
