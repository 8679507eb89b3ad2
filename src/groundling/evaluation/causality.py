"""Whether a model sees the future: asked of the model itself."""

from __future__ import annotations

import torch

from groundling.model.gpt import GPT


@torch.inference_mode()
def sees_the_future(model: GPT) -> bool:
    """Whether a change of the last token of a window changes what is predicted before it.

    A model of which that is so has learned to copy answers that it will not have when it writes.
    """
    model.eval()
    T, V = model.config.block_size, model.vocab_size
    tokens = torch.randint(V, (1, T), generator=torch.Generator().manual_seed(0)).to(model.device)
    changed = tokens.clone()
    changed[0, -1] = (changed[0, -1] + 1) % V
    one, other = model(tokens)[0, :-1], model(changed)[0, :-1]
    return not torch.equal(one, other)
