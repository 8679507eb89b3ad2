"""Policy gradients, compared with TRL: it samples and rewards the replies of a tiny model, both compute the rest."""

from __future__ import annotations

from typing import Any

import pytest
import torch

pytest.importorskip("trl")

from both import Both, Rows
from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

from groundling.config.methods import GrpoSettings
from groundling.tasks.losses.logprobs import entropy, masked_sum
from groundling.tasks.losses.policy import Sampled, divisor, group_advantages, policy_loss

LONGEST, GROUP = 8, 4
PROMPTS = ["what is it? ", "go ", "why? "]


def rewards_of(completions: list[str], **_: Any) -> list[float]:
    """Of the text; and equal for many replies, so that a group may have no best one."""
    return [float("e" in text) + float(len(text) < 8) for text in completions]


def sampled_by(kind: Any, config: Any, both: Both, **others: Any) -> tuple[Any, dict[str, Any], torch.Tensor]:
    """TRL's trainer, the batch that it samples and computes advantages for, and our rewards of the same replies."""
    prompts = PROMPTS if both.family == "qwen3" else [prompt[:3] for prompt in PROMPTS]  # see the last test
    torch.manual_seed(0)
    size = GROUP * len(prompts)
    arguments = both.arguments(
        config, per_device_train_batch_size=size, num_generations=GROUP, max_completion_length=LONGEST, **others
    )
    rows = Dataset.from_list([{"prompt": prompt} for prompt in prompts])
    trainer = kind(
        both.theirs, reward_funcs=rewards_of, args=arguments, train_dataset=rows, processing_class=both.tokenizer
    )
    if trainer.ref_model is not None:
        trainer.ref_model.load_state_dict(both.their_reference.state_dict())
    trainer.current_gradient_accumulation_steps = 1
    batch = trainer._generate_and_score_completions(next(iter(trainer.get_train_dataloader())))
    replies = zip(batch["completion_ids"], batch["completion_mask"].bool(), strict=True)
    texts = [both.tokenizer.decode(ids[mask], skip_special_tokens=True) for ids, mask in replies]
    return trainer, batch, torch.tensor(rewards_of(texts))


def rows_of(batch: dict[str, Any], mask: torch.Tensor) -> Rows:
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)
    attention = torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1)
    return Rows(ids, attention, torch.cat([torch.zeros_like(batch["prompt_mask"]), mask], dim=1))


@pytest.mark.parametrize(
    ("kind", "scale", "temperature"), [("grpo", "group", 1.0), ("dapo", "none", 0.7), ("dr_grpo", "none", 1.0)]
)
def test_grpo(kind: Any, scale: Any, temperature: float, both: Both, record: Any) -> None:
    """After an update, so that ratios differ from 1 and some are clipped; and with forced tokens in the replies."""
    others: dict[str, Any] = {"loss_type": kind, "beta": 0.2, "epsilon": 0.2, "epsilon_high": 0.28}
    others |= {"scale_rewards": scale, "temperature": temperature}
    trainer, batch, rewards = sampled_by(GRPOTrainer, GRPOConfig, both, **others)
    advantages = group_advantages(rewards.view(-1, GROUP), "group", scale).flatten()
    torch.testing.assert_close(advantages, batch["advantages"], rtol=1e-5, atol=1e-6)
    batch["tool_mask"] = (torch.rand(batch["completion_mask"].shape) < 0.8).long()
    mask = batch["completion_mask"] * batch["tool_mask"]
    batch["num_items_in_batch"] = mask.sum()
    rows = rows_of(batch, mask)
    with torch.no_grad():
        reference = rows.logprobs(both.our_reference, temperature)
    # Theirs of a reply's tokens, and noise, as if the policy had been another one.
    batch["old_per_token_logps"] = batch["ref_per_token_logps"] + 0.3 * torch.randn(mask.shape)
    old = rows.place(batch["old_per_token_logps"], mask)
    for trainer.beta in (0.0, 0.2):
        settings = GrpoSettings(**others | {"beta": trainer.beta})
        theirs = trainer._compute_loss(trainer.model, batch)
        policy = Sampled(rows.logprobs(both.ours, temperature), old, rows.mask, reference if trainer.beta else None)
        loss, figures = policy_loss(policy, advantages, settings)
        name = f"GRPO: {kind}" + (", KL" if trainer.beta else "")
        both.compare(name, loss / divisor(rows.mask, settings, LONGEST), theirs, record)
    logged = trainer._metrics["train"]
    assert figures["clipped"].item() == pytest.approx(logged["clip_ratio/region_mean"][-1], abs=1e-6)
    assert 0.05 < figures["clipped"] < 0.6
    spread = (entropy(both.ours(rows.tokens) / temperature) * rows.mask).sum() / rows.mask.sum()
    assert spread.item() == pytest.approx(logged["entropy"][-1], abs=1e-5)


@pytest.mark.parametrize("beta", [0.0, 0.2])
def test_rloo(beta: float, both: Both, record: Any) -> None:
    """TRL's KL divergence is part of the reward: see docs/parity.md."""
    trainer, batch, rewards = sampled_by(RLOOTrainer, RLOOConfig, both, beta=beta, epsilon=0.2)
    mask = batch["completion_mask"]
    rows = rows_of(batch, mask)
    settings = GrpoSettings(loss_type="rloo", baseline="loo")
    logprobs = rows.logprobs(both.ours)
    with torch.no_grad():
        log_ratios = logprobs - rows.logprobs(both.our_reference)
    rewards = rewards - beta * masked_sum(log_ratios, rows.mask)
    advantages = group_advantages(rewards.view(-1, GROUP), "loo").flatten()
    torch.testing.assert_close(advantages, batch["advantages"], rtol=1e-4, atol=1e-5)
    old = logprobs.detach() + 0.1 * torch.randn(logprobs.shape)
    batch["old_logps"] = masked_sum(old, rows.mask)
    theirs = trainer._compute_loss(trainer.model, batch)
    loss, figures = policy_loss(Sampled(logprobs, old, rows.mask), advantages, settings)
    assert figures["clipped"].item() == pytest.approx(trainer._metrics["train"]["clip_ratio/region_mean"][-1])
    assert 0.0 < figures["clipped"] < 1.0
    both.compare("RLOO", loss / divisor(rows.mask, settings, LONGEST), theirs, record)


def test_padding_on_the_left_shifts_the_positions_of_gpt2(both: Both) -> None:
    """A known difference. TRL pads prompts on the left and passes no positions, so a GPT-2 counts them over the
    padding, and its log-probabilities depend on the longest prompt of the batch. Relative positions (RoPE) do not."""
    ids, mask = torch.tensor([[4, 7, 1, 9, 3, 8]]), torch.ones(1, 6, dtype=torch.long)
    padded, padded_mask = (torch.nn.functional.pad(x, (5, 0)) for x in (ids, mask))
    positions = (padded_mask.cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        ours = both.ours(ids)
        as_trl = both.theirs(padded, attention_mask=padded_mask).logits[:, 5:]
        with_positions = both.theirs(padded, attention_mask=padded_mask, position_ids=positions).logits[:, 5:]
    torch.testing.assert_close(ours, with_positions, rtol=1e-4, atol=1e-4)
    assert ((ours - as_trl).abs().max() > 1e-2) == (both.family == "gpt2")
