"""A tiny model twice: ours, and its export in transformers. And what has to be equal: loss and gradients."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from groundling.config import ModelSettings
from groundling.data.tokenizers.base import CharTokenizer
from groundling.interchange import huggingface
from groundling.interchange.weight_names import Family, to_external
from groundling.model.gpt import GPT
from groundling.tasks.losses.logprobs import masked_sum, token_logprobs
from groundling.tasks.losses.preference import Replies
from untrained import untrained

TOKENIZER = CharTokenizer.fit(["abcdefghijklmnopqrstuvwxyz .?"], end_of_text=True)
MOST_LOSS, MOST_GRADIENT = 1e-5, 1e-4
_SIZES: dict[str, Any] = {"n_layer": 2, "n_head": 4, "n_embd": 32, "block_size": 64, "dropout": 0.0}
_FAMILIES: dict[Family, dict[str, Any]] = {
    "gpt2": _SIZES,
    "qwen3": _SIZES | {"norm": "rmsnorm", "position": "rope", "mlp": "swiglu", "n_kv_head": 2, "qk_norm": True},
}


class Both:
    """A policy and a reference model, each ours and theirs, with the same weights."""

    def __init__(self, family: Family, folder: Path) -> None:
        import transformers

        self.family, self.folder = family, folder
        config = ModelSettings(**_FAMILIES[family])
        self.ours = untrained(config, TOKENIZER.vocab_size, spread=0.05)
        self.our_reference = untrained(config, TOKENIZER.vocab_size, spread=0.08)
        for name, model in (("policy", self.ours), ("reference", self.our_reference)):
            (folder / name).mkdir(exist_ok=True)
            huggingface.write(folder / name, model, TOKENIZER)
        load = transformers.AutoModelForCausalLM.from_pretrained
        self.theirs, self.their_reference = (load(folder / name).float().train() for name in ("policy", "reference"))
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "policy")
        self.tokenizer.pad_token = "z"  # not the end, which transformers' reward models would skip as padding

    def arguments(self, kind: Any, **settings: Any) -> Any:
        """The arguments of a trainer: no mixed precision, nothing that is not the loss."""
        return kind(
            str(self.folder / "out"), bf16=False, use_cpu=True, gradient_checkpointing=False, report_to="none",
            disable_tqdm=True, **settings,
        )  # fmt: skip

    def our_gradients(self) -> dict[str, torch.Tensor]:
        """By their names, and in their shapes."""
        gradients = copy.deepcopy(self.ours)
        with torch.no_grad():
            for ours, copied in zip(self.ours.parameters(), gradients.parameters(), strict=True):
                assert ours.grad is not None
                copied.copy_(ours.grad)
        external = to_external(gradients, huggingface.NAMES[self.family])
        return huggingface.transposed(external, self.family)

    def compare(self, method: str, ours: torch.Tensor, theirs: torch.Tensor, record: Callable[..., None]) -> None:
        """Back-propagate both losses. Gradients of a tensor may differ by a share of its norm, or of a hundredth of the
        norm of all, since some are 0 but for rounding (those of GPT-2's key biases)."""
        self.ours.zero_grad()
        self.theirs.zero_grad()
        ours.backward()
        theirs.backward()
        found = self.our_gradients()
        expected = {name: p.grad for name, p in self.theirs.named_parameters() if p.grad is not None}
        assert found.keys() >= expected.keys() and expected
        assert all(not found[name].any() for name in found.keys() - expected.keys())  # a head that is not in the loss
        least = 0.01 * torch.stack([gradient.norm() for gradient in expected.values()]).norm()
        gradient = max(
            float((found[name] - expected[name]).norm() / torch.maximum(expected[name].norm(), least))
            for name in expected
        )
        loss = abs(ours.item() - theirs.item())
        record("parity", (method, self.family, loss, gradient))
        assert loss <= MOST_LOSS and gradient <= MOST_GRADIENT, (method, loss, gradient)


class Rows:
    """What a batch of theirs says, as our batches have it: padded on the right, with a mask of the targets.

    `input_ids`, `attention_mask` and `mask` (of learned tokens) are (B, T).
    """

    def __init__(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, mask: torch.Tensor) -> None:
        rows = [ids[real.bool()] for ids, real in zip(input_ids, attention_mask, strict=True)]
        masks = [each[real.bool()] for each, real in zip(mask, attention_mask, strict=True)]
        pad = torch.nn.utils.rnn.pad_sequence
        ids, self.mask = pad(rows, True), pad(masks, True)[:, 1:].float()
        self.tokens, self.targets = ids[:, :-1], ids[:, 1:]

    def logprobs(self, model: GPT, temperature: float = 1.0) -> torch.Tensor:
        return token_logprobs(model(self.tokens) / temperature, self.targets)

    def place(self, values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Their values of the learned tokens, where their `mask` is 1, in our layout."""
        return torch.zeros(self.mask.shape).masked_scatter(self.mask.bool(), values[mask.bool()])

    def replies(self, both: Both) -> Replies:
        with torch.no_grad():
            reference = masked_sum(self.logprobs(both.our_reference), self.mask)
        return Replies(masked_sum(self.logprobs(both.ours), self.mask), self.mask.sum(1), reference)


def half(replies: Replies, which: int) -> Replies:
    """The chosen (0) or the rejected (1) half of their batches."""
    assert replies.reference is not None
    return Replies(*(x.chunk(2)[which] for x in (replies.logprobs, replies.lengths, replies.reference)))
