"""Supervised fine-tuning and distillation, compared with TRL."""

from __future__ import annotations

from typing import Any

import pytest
import torch

pytest.importorskip("trl")

from both import MOST_GRADIENT, MOST_LOSS, TOKENIZER, Both, Rows
from datasets import Dataset
from trl import SFTConfig, SFTTrainer
from trl.experimental.gkd import GKDTrainer

from groundling.data.batches import Batch
from groundling.tasks.losses.divergence import forward_kl, jensen_shannon, reverse_kl
from groundling.training.task import Task

EXAMPLES = [("what is it? ", "a cat."), ("go ", "home and stay there."), ("why? ", "no."), ("who is there? ", "me")]


@pytest.mark.parametrize("accumulate", [1, 2])
def test_sft(accumulate: int, both: Both, record: Any) -> None:
    """With accumulation, a token counts the same in any micro-batch."""
    rows = []
    for prompt, completion in EXAMPLES:
        ids = [*TOKENIZER.encode(prompt + completion), TOKENIZER.end_of_text_id]
        mask = [int(i >= len(prompt)) for i in range(len(ids))]
        rows.append({"input_ids": ids, "completion_mask": mask})
    arguments = both.arguments(SFTConfig, per_device_train_batch_size=4 // accumulate, completion_only_loss=True)
    trainer = SFTTrainer(both.theirs, arguments, train_dataset=Dataset.from_list(rows), processing_class=both.tokenizer)
    batches = list(trainer.get_train_dataloader())
    learned = sum((batch["labels"][:, 1:] != -100).sum() for batch in batches)
    theirs = sum(trainer.compute_loss(trainer.model, dict(batch), num_items_in_batch=learned) for batch in batches)
    ours = torch.zeros(())
    for batch in batches:
        part = Rows(batch["input_ids"], batch["attention_mask"], batch["labels"] != -100)
        loss = Task.loss(None, both.ours, Batch(part.tokens, part.targets, part.mask))  # type: ignore[arg-type]
        ours = ours + loss.value * part.mask.sum() / learned
    both.compare("SFT", ours, theirs, record)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("beta", [0.0, 0.3, 0.5, 1.0])
def test_divergences(beta: float, temperature: float, record: Any) -> None:
    """TRL takes beta 0 and 1 as KL divergences, and does not multiply by the square of the temperature."""
    torch.manual_seed(0)
    student, teacher = (3 * torch.randn(2, 4, 7, 30)).unbind()
    student.requires_grad_()
    labels = torch.where(torch.rand(4, 7) < 0.6, 1, -100)
    theirs = GKDTrainer.generalized_jsd_loss(student, teacher, labels, beta, temperature)
    losses = {0.0: forward_kl, 1.0: reverse_kl}.get(beta)
    mask = labels != -100
    tokens = losses(student, teacher, temperature) if losses else jensen_shannon(student, teacher, beta, temperature)
    ours = (tokens * mask).sum() / mask.sum() / temperature**2
    found, expected = (torch.autograd.grad(loss, student)[0] for loss in (ours, theirs))
    method = {0.0: "forward KL", 1.0: "reverse KL"}.get(beta, "JSD")
    loss, gradient = abs((ours - theirs).item()), float((found - expected).norm() / expected.norm())
    record("parity", (method, "", loss, gradient))
    assert loss <= MOST_LOSS and gradient <= MOST_GRADIENT
