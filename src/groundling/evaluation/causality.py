"""A test of whether a model sees the future."""

from __future__ import annotations

import torch

from groundling.model.gpt import GPT


@torch.inference_mode()
def sees_the_future(model: GPT) -> bool:
    """Whether changing the last token of a window changes the predictions before it.

    Such a model has learned to copy answers that it does not have when it generates.
    """
    model.eval()
    T, V = model.config.block_size, model.vocab_size
    tokens = torch.randint(V, (1, T), generator=torch.Generator().manual_seed(0)).to(model.device)
    changed = tokens.clone()
    changed[0, -1] = (changed[0, -1] + 1) % V
    return not torch.equal(model(tokens)[0, :-1], model(changed)[0, :-1])
