"""The models of the library `transformers` with the weights of ours: a reference that we did not write."""

from __future__ import annotations

import torch

from groundling.model.gpt import GPT


def gpt2_of(model: GPT) -> torch.nn.Module:
    """transformers' GPT-2 with the weights of `model`. It stores matrices as (in, out): transposed to nn.Linear."""
    from transformers import GPT2Config, GPT2LMHeadModel

    c = model.config
    config = GPT2Config(
        vocab_size=model.vocab_size, n_positions=c.block_size, n_embd=c.n_embd, n_layer=c.n_layer, n_head=c.n_head,
        tie_word_embeddings=c.tie_head, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    reference = GPT2LMHeadModel(config).eval()
    weights = {}
    for name, value in model.state_dict().items():
        matrix_of_block = name.startswith("h.") and name.endswith("weight") and value.dim() == 2
        key = name if name.startswith("lm_head") else f"transformer.{name}"
        weights[key] = value.T.contiguous() if matrix_of_block else value
    if c.tie_head:
        weights["lm_head.weight"] = model.wte.weight
    missing, unexpected = reference.load_state_dict(weights, strict=False)
    assert not missing
    assert not unexpected
    return reference


def qwen3_of(model: GPT) -> torch.nn.Module:
    """transformers' Qwen3 with the weights of `model`."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    c = model.config
    reference = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=model.vocab_size,
            hidden_size=c.n_embd,
            intermediate_size=c.n_hidden,
            num_hidden_layers=c.n_layer,
            num_attention_heads=c.n_head,
            num_key_value_heads=c.kv_heads,
            head_dim=c.head_dim,
            max_position_embeddings=c.block_size,
            rms_norm_eps=1e-6,
            tie_word_embeddings=c.tie_head,
            rope_parameters={"rope_type": "default", "rope_theta": c.rope_theta},
            bos_token_id=0,
            eos_token_id=0,
        )
    ).eval()
    weights = {"model.embed_tokens.weight": model.wte.weight, "model.norm.weight": model.ln_f.weight}
    weights["lm_head.weight"] = model.wte.weight if model.lm_head is None else model.lm_head.weight
    for i, block in enumerate(model.blocks):
        rows = [n * c.head_dim for n in block.attn.heads]
        gate, up = block.mlp.c_fc.weight.chunk(2)
        parts = dict(zip("qkv", block.attn.c_attn.weight.split(rows), strict=True))
        weights |= {f"model.layers.{i}.self_attn.{name}_proj.weight": part for name, part in parts.items()} | {
            f"model.layers.{i}.self_attn.o_proj.weight": block.attn.c_proj.weight,
            f"model.layers.{i}.self_attn.q_norm.weight": block.attn.rope.q_norm.weight,
            f"model.layers.{i}.self_attn.k_norm.weight": block.attn.rope.k_norm.weight,
            f"model.layers.{i}.mlp.gate_proj.weight": gate,
            f"model.layers.{i}.mlp.up_proj.weight": up,
            f"model.layers.{i}.mlp.down_proj.weight": block.mlp.c_proj.weight,
            f"model.layers.{i}.input_layernorm.weight": block.ln_1.weight,
            f"model.layers.{i}.post_attention_layernorm.weight": block.ln_2.weight,
        }
    reference.load_state_dict(weights)
    return reference
