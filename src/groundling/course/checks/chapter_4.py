"""Checks of chapter 4, "The loop"."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from groundling.config import TrainingSettings
from groundling.course.checks import expect, expect_close
from groundling.training.schedule import rate_factor


def get_batch(answer: Callable[..., Any]) -> None:
    ids = torch.arange(100, 140)
    pair = answer(ids.clone(), 8, 400, torch.Generator().manual_seed(1))
    expect(isinstance(pair, tuple | list) and len(pair) == 2, "It should return two tensors, x and y.")
    x, y = map(torch.as_tensor, pair)
    for name, windows in (("x", x), ("y", y)):
        shape = tuple(windows.shape)
        expect(shape == (400, 8), f"{name} should have shape (batch_size, block_size) = (400, 8), not {shape}.")
        expect(windows.dtype == torch.int64, f"{name} should be int64, as token ids are, not {windows.dtype}.")
    expect(bool((x[:, 1:] == x[:, :-1] + 1).all()), "A row of x should be neighbours in the text, in order.")
    expect(not torch.equal(x, y), "y is x itself. The targets are the tokens one place later.")
    expect(bool((y == x + 1).all()), "y[b, t] should be the token that follows x[b, t] in the text, also at the end.")
    expect(len(x[:, 0].unique()) > 1, "All windows begin at the same place. Draw each start at random.")
    expect(int(x.min()) == 100, "The first window of the text is never drawn.")
    expect(int(y.max()) == 139, "The last token of the text is never a target. Starts go up to N - block_size - 1.")
    again = torch.as_tensor(answer(ids.clone(), 8, 400, torch.Generator().manual_seed(1))[0])
    expect(torch.equal(x, again), "The same generator should give the same windows. Pass it to torch.randint.")
    other = torch.as_tensor(answer(ids.clone(), 8, 400, torch.Generator().manual_seed(2))[0])
    expect(not torch.equal(x, other), "Another generator gave the same windows. Draw the starts from `generator`.")


def clip_gradients(answer: Callable[..., Any]) -> None:
    def parameters(*gradients: list[float] | None) -> list[torch.nn.Parameter]:
        made = [torch.nn.Parameter(torch.zeros(len(g or [0.0]))) for g in gradients]
        for parameter, gradient in zip(made, gradients, strict=True):
            parameter.grad = None if gradient is None else torch.tensor(gradient)
        return made

    small = parameters([0.3], [0.0, 0.4])
    norm = answer(iter(small), 1.0)
    expect(norm is not None, "It should return the norm before clipping.")
    expect_close("A gradient below the limit", small[1].grad, [0.0, 0.4], hint="It should stay as it is.")
    large = parameters([3.0], None, [0.0, 4.0])
    norm = answer(large, 1.0)
    expect(
        any(p.grad is not None and float(p.grad.abs().max()) < 2 for p in large),
        "The gradients did not change. Scale them in place, as with grad.mul_(factor).",
    )
    found = [p.grad for p in large if p.grad is not None]
    expect(
        abs(float(found[0]) - 1.0) > 1e-4,
        "Each gradient was cut alone, which changes their direction. All share one norm and one factor.",
    )
    expect_close(
        "The clipped gradients", torch.cat(found), [0.6, 0.0, 0.8], hint="Divide by the norm, times the limit."
    )
    expect_close("The norm", float(norm), 5.0, hint="Return the norm before clipping, of all gradients together.")
    looser = parameters([6.0], [8.0])
    answer(looser, 5.0)
    expect_close("With most=5.0, the clipped gradients", torch.cat([p.grad for p in looser if p.grad is not None]),
                 [3.0, 4.0], hint="The norm should become `most`.")  # fmt: skip


def learning_rate(answer: Callable[..., Any]) -> None:
    n_steps, warmup, peak, final = 50, 10, 2.0, 0.5
    rates = [answer(step, n_steps, warmup, peak, final) for step in range(1, n_steps + 1)]
    expect(all(isinstance(rate, int | float | torch.Tensor) for rate in rates), "It should return a number.")
    expect(len({float(rate) for rate in rates}) > 1, "The rate is the same at all steps.")
    expect(
        float(rates[0]) < peak / 2, f"Step 1 has {float(rates[0]):.3g}. There is no warm-up: it should be peak / 10."
    )
    expect_close("The rate of step 1 of 10 of warm-up", rates[0], peak / warmup, hint="Steps are counted from 1.")
    expect_close("The rate at the end of the warm-up", rates[warmup - 1], peak,
                 hint="The cosine begins where the warm-up ends, with a = 0.")  # fmt: skip
    expect_close("The rate of the last step", rates[-1], final,
                 hint="It should fall to `final`, so scale the cosine to peak - final and add final.")  # fmt: skip
    settings = TrainingSettings(steps=n_steps, warmup_steps=warmup, final_lr_fraction=final / peak)
    ours = [peak * rate_factor(step / n_steps, settings) for step in range(1, n_steps + 1)]
    expect_close("A rate between the warm-up and the end", rates, ours, hint="After the warm-up it is half a cosine.")
    expect_close("Without a warm-up, the rate of the middle step", answer(5, 10, 0, 1.0, 0.0), 0.5)


class _Watched(torch.nn.Module):
    """Predicts from the present token alone, worse in training mode, and keeps what it was asked."""

    def __init__(self) -> None:
        super().__init__()
        table = torch.randn(12, 12, generator=torch.Generator().manual_seed(3))
        self.table = torch.nn.Parameter(table)
        self.targets_seen, self.widest = 0, 0
        self.gradients = False

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        self.targets_seen += tokens.numel()
        self.widest = max(self.widest, tokens.shape[-1])
        logits = self.table[tokens]
        self.gradients |= logits.requires_grad
        return logits * 0.1 if self.training else logits


def validation_loss(answer: Callable[..., Any]) -> None:
    ids = torch.randint(12, (1_003,), generator=torch.Generator().manual_seed(4))  # the last window has 42 targets
    ids[-42:] = 7  # and they are all the same
    model = _Watched().train()
    with torch.no_grad():
        right = F.cross_entropy(model.table[ids[:-1]], ids[1:]).item()
        noisy = F.cross_entropy(0.1 * model.table[ids[:-1]], ids[1:]).item()
    loss = answer(model, ids.clone(), 64)
    expect(loss is not None, "It should return the loss.")
    value = float(loss)
    expect(
        abs(value - noisy) > 1e-4, "The model was in training mode. Call model.eval() first, or dropout counts, too."
    )
    expect(model.training, "The model is left in evaluation mode. Call model.train() at the end.")
    expect(not model.gradients, "Gradients were recorded, which takes memory and time. Use torch.no_grad().")
    expect(model.widest <= 64, f"The model got windows of {model.widest} tokens, more than block_size = 64.")
    asked, n = model.targets_seen, len(ids) - 1
    expect(
        value == float(answer(model, ids.clone(), 64)), "A second call gave another loss. The windows must be fixed."
    )
    expect(asked == n, f"Of {n:,} tokens to predict, {asked:,} were predicted. Each should be, once.")
    hint = "All tokens count the same: add up losses of tokens, and divide once at the end."
    expect_close("The loss", value, right, hint=hint)
