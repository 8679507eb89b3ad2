"""The shapes of a model's weights, and the memory that they take, from its settings alone: nothing is built.

What a stranger's config.json asks for is known by this before anything of that size is made.
"""

from __future__ import annotations

from groundling.config import ModelSettings

Shape = tuple[int, ...]


def weight_shapes(config: ModelSettings, vocab_size: int) -> dict[str, Shape]:
    """Those of `GPT(config, vocab_size).state_dict()`, by name."""
    C, biases = config.n_embd, config.has_biases

    def norm(name: str) -> dict[str, Shape]:
        return {f"{name}.{part}": (C,) for part in ("weight", "bias")[: 1 + biases]}

    def linear(name: str, n_in: int, n_out: int) -> dict[str, Shape]:
        return {f"{name}.weight": (n_out, n_in)} | ({f"{name}.bias": (n_out,)} if biases else {})

    inner = config.n_hidden
    block = norm("ln_1") | norm("ln_2")
    block |= linear("attn.c_attn", C, (config.n_head + 2 * config.kv_heads) * config.head_dim)
    block |= linear("attn.c_proj", config.n_head * config.head_dim, C)
    block |= linear("mlp.c_fc", C, 2 * inner if config.mlp == "swiglu" else inner) | linear("mlp.c_proj", inner, C)
    if config.position == "rope":
        block |= {f"attn.turn.{name}.weight": (config.head_dim,) for name in ("q_norm", "k_norm")}
    return (
        {"wte.weight": (vocab_size, C)}
        | ({"wpe.weight": (config.block_size, C)} if config.position == "learned" else {})
        | {f"h.{layer}.{name}": shape for layer in range(config.n_layer) for name, shape in block.items()}
        | norm("ln_f")
        | ({} if config.tie_head else {"lm_head.weight": (vocab_size, C)})
    )


def memory_to_write(config: ModelSettings, vocab_size: int) -> int:
    """Bytes that a model takes when it writes: weights, rotations, and keys and values of a whole context, in float32,
    and the masks and logits of one position each."""
    numbers = sum(_size(shape) for shape in weight_shapes(config, vocab_size).values())
    rotations = config.n_layer * config.block_size * config.head_dim if config.position == "rope" else 0
    cache = 2 * config.n_layer * config.block_size * config.kv_heads * config.head_dim
    return 4 * (numbers + rotations + cache + vocab_size)


def _size(shape: Shape) -> int:
    size = 1
    for length in shape:
        size *= length
    return size
