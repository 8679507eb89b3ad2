"""Losses of pairs, compared with TRL."""

from __future__ import annotations

from typing import Any

import pytest
import torch

pytest.importorskip("trl")

from both import Both, Rows, half
from datasets import Dataset
from transformers import AutoModelForSequenceClassification
from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer, RewardConfig, RewardTrainer
from trl.experimental.cpo import CPOConfig, CPOTrainer
from trl.experimental.orpo import ORPOConfig, ORPOTrainer

from groundling.config.methods import DpoSettings
from groundling.tasks.losses.preference import (
    Replies,
    kto_baseline,
    preference_figures,
    preference_losses,
    reward_figures,
    reward_losses,
)  # fmt: skip

PAIRS = [
    {"prompt": "what is it? ", "chosen": "a cat.", "rejected": "nothing to see."},
    {"prompt": "go ", "chosen": "home and stay there.", "rejected": "away"},
    {"prompt": "why? ", "chosen": "no.", "rejected": "because it is so."},
    {"prompt": "who is there? ", "chosen": "me", "rejected": "x"},
]


def settings(kind: str, **others: Any) -> DpoSettings:
    return DpoSettings(loss_type=kind, **others)  # type: ignore[arg-type]


def trainer_of(kind: Any, config: Any, both: Both, rows: list[dict[str, Any]] = PAIRS, **others: Any) -> Any:
    arguments = both.arguments(config, per_device_train_batch_size=len(rows), **others)
    reference = {"ref_model": both.their_reference} if kind in (DPOTrainer, KTOTrainer) else {}
    data = Dataset.from_list(rows)
    return kind(both.theirs, args=arguments, train_dataset=data, processing_class=both.tokenizer, **reference)


@pytest.mark.parametrize("beta", [0.1, 0.7])
@pytest.mark.parametrize("kind", ["sigmoid", "ipo", "hinge"])
def test_dpo(kind: str, beta: float, both: Both, record: Any) -> None:
    trainer = trainer_of(DPOTrainer, DPOConfig, both, loss_type=[kind], beta=beta)
    batch = next(iter(trainer.get_train_dataloader()))
    replies = Rows(batch["input_ids"], batch["attention_mask"], batch["completion_mask"]).replies(both)
    chosen, rejected = half(replies, 0), half(replies, 1)
    theirs = trainer.compute_loss(trainer.model, batch)
    both.compare(f"DPO: {kind}", preference_losses(chosen, rejected, settings(kind, beta=beta)).mean(), theirs, record)
    logged, figures = trainer._metrics["train"], preference_figures(chosen, rejected, beta)
    for ours, name in [
        ("chosen_reward", "rewards/chosen"), ("rejected_reward", "rewards/rejected"), ("margin", "rewards/margins"),
        ("accuracy", "rewards/accuracies"), ("chosen_logprob", "logps/chosen"), ("rejected_logprob", "logps/rejected"),
    ]:  # fmt: skip
        assert figures[ours].item() == pytest.approx(logged[name][-1], abs=1e-4)


@pytest.mark.parametrize("kind", ["sigmoid", "ipo"])
def test_the_anchor(kind: str, both: Both, record: Any) -> None:
    """TRL's is a mean over the tokens of a batch, ours over replies, as in RPO's paper: so with chosen ones of a
    length."""
    rows = [row | {"chosen": f"yes{i}"[:3] + " it is"} for i, row in enumerate(PAIRS)]
    trainer = trainer_of(DPOTrainer, DPOConfig, both, rows, loss_type=[kind, "sft"], loss_weights=[1.0, 0.4])
    batch = next(iter(trainer.get_train_dataloader()))
    replies = Rows(batch["input_ids"], batch["attention_mask"], batch["completion_mask"]).replies(both)
    ours = preference_losses(half(replies, 0), half(replies, 1), settings(kind, anchor=0.4)).mean()
    both.compare("RPO: anchor", ours, trainer.compute_loss(trainer.model, batch), record)


def test_label_smoothing(both: Both, record: Any) -> None:
    """TRL has cDPO in CPOTrainer, without a reference model."""
    trainer = trainer_of(CPOTrainer, CPOConfig, both, loss_type="sigmoid", label_smoothing=0.2, cpo_alpha=0.0)
    batch = next(iter(trainer.get_train_dataloader()))
    chosen, rejected = without_reference(trainer, batch, both)
    zero = [Replies(r.logprobs, r.lengths, torch.zeros(4)) for r in (chosen, rejected)]
    ours = preference_losses(*zero, settings("sigmoid", label_smoothing=0.2)).mean()
    both.compare("cDPO: label smoothing", ours, trainer.compute_loss(trainer.model, batch), record)


def test_kto(both: Both, record: Any) -> None:
    """Its examples are single. The replies to other prompts, which measure the divergence, are TRL's."""
    rows = [
        {"prompt": p["prompt"], "completion": p[k], "label": k == "chosen"} for p in PAIRS for k in p if k != "prompt"
    ]
    trainer = trainer_of(KTOTrainer, KTOConfig, both, rows)
    batch = next(iter(trainer.get_train_dataloader()))
    replies = Rows(batch["input_ids"], batch["attention_mask"], batch["completion_mask"]).replies(both)
    names = ("KL_input_ids", "KL_attention_mask", "KL_completion_mask")
    baseline = kto_baseline(Rows(*(batch[name] for name in names)).replies(both))
    assert baseline > 0
    desired = batch["label"].bool()
    assert replies.reference is not None
    chosen, rejected = (
        Replies(replies.logprobs[which], replies.lengths[which], replies.reference[which])
        for which in (desired, ~desired)
    )
    theirs = trainer.compute_loss(trainer.model, batch)
    both.compare("KTO", preference_losses(chosen, rejected, settings("kto"), baseline).mean(), theirs, record)
    assert trainer._metrics["train"]["kl"][-1] == pytest.approx(baseline.item(), abs=1e-4)


def without_reference(trainer: Any, batch: Any, both: Both) -> tuple[Replies, Replies]:
    """ORPO's and CPO's trainers have a collator and a layout of their own."""
    parts = [
        Rows(batch[f"{name}_input_ids"], batch[f"{name}_attention_mask"], batch[f"{name}_labels"] != -100).replies(both)
        for name in ("chosen", "rejected")
    ]
    chosen, rejected = (Replies(part.logprobs, part.lengths) for part in parts)
    return chosen, rejected


@pytest.mark.parametrize("gamma", [0.0, 0.5])
def test_simpo(gamma: float, both: Both, record: Any) -> None:
    others: dict[str, Any] = {"beta": 2.0, "simpo_gamma": gamma, "cpo_alpha": 0.0}
    trainer = trainer_of(CPOTrainer, CPOConfig, both, loss_type="simpo", **others)
    batch = next(iter(trainer.get_train_dataloader()))
    ours = preference_losses(*without_reference(trainer, batch, both), settings("simpo", beta=2.0, gamma=gamma)).mean()
    both.compare("SimPO", ours, trainer.compute_loss(trainer.model, batch), record)


def test_orpo(both: Both, record: Any) -> None:
    """TRL's next-token loss is a mean over the tokens of prompts and chosen replies. Ours is that of the paper, over
    each chosen reply. They are the same for prompts of one token and chosen replies of a length."""
    rows = [row | {"prompt": row["prompt"][0], "chosen": row["chosen"].ljust(9, ".")[:9]} for row in PAIRS]
    both.tokenizer.bos_token = None
    trainer = trainer_of(ORPOTrainer, ORPOConfig, both, rows, beta=0.3)
    batch = next(iter(trainer.get_train_dataloader()))
    ours = preference_losses(*without_reference(trainer, batch, both), settings("orpo", beta=0.3)).mean()
    both.compare("ORPO", ours, trainer.compute_loss(trainer.model, batch), record)


def test_reward_model(both: Both, record: Any) -> None:
    """A linear head on the last token, the end."""
    both.theirs = AutoModelForSequenceClassification.from_pretrained(both.folder / "policy", num_labels=1).train()
    head = both.theirs.score.weight
    torch.nn.init.normal_(head, std=0.1)
    our_head = head.detach().clone().requires_grad_()
    trainer = trainer_of(RewardTrainer, RewardConfig, both, center_rewards_coefficient=0.01)
    batch = next(iter(trainer.get_train_dataloader()))
    ids, last = batch["input_ids"], batch["attention_mask"].sum(1) - 1
    state = both.ours.ln_f(both.ours.hidden(ids))[torch.arange(len(ids)), last]
    chosen, rejected = (state @ our_head[0]).chunk(2)
    theirs = trainer.compute_loss(trainer.model, batch)
    figures, logged = reward_figures(chosen, rejected), trainer._metrics["train"]
    for name in ("accuracy", "margin"):
        assert figures[name].item() == pytest.approx(logged[name][-1], abs=1e-5)
    external = both.our_gradients
    both.our_gradients = lambda: external() | {"score.weight": our_head.grad}  # type: ignore[method-assign]
    both.compare("reward model", reward_losses(chosen, rejected, center=0.01).mean(), theirs, record)
