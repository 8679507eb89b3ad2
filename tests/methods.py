"""Tiny runs of every post-training method, and the models and files that they start from.

The parent knows some words backwards and some sums with the calculator, by heart and not well. So some groups of its
replies have a signal, and others have none.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import groundling
from groundling.data.conversations import Message
from groundling.environments import ENVIRONMENTS

STEPS = 32
TINY: dict[str, Any] = {
    "steps": STEPS, "batch_size": 8, "eval_every": 8, "checkpoint_every": 8, "sample_every": 16, "warmup_steps": 3,
    "learning_rate": 3e-3, "device": "cpu", "dtype": "float32", "threads": 1,
}  # fmt: skip
_SIZE = {"n_layer": 1, "n_head": 2, "n_embd": 16, "block_size": 48, "compile": "off"}
_WORDS = {"task": "reverse", "level": 1, "num_generations": 8}
_SUMS = {"task": "sums", "level": 1, "num_generations": 8, "tool": True}
_JUDGED = {"reward": "judge", "num_generations": 4, "max_completion_length": 8}
_REVERSE = {"divergence": "reverse", "accumulate": 2, "batch_size": 4}
_RLOO = {"loss_type": "rloo", "baseline": "loo", "scale_rewards": "group", "beta": 0.05}

METHODS: dict[str, tuple[str, list[str], dict[str, Any]]] = {
    "sft": ("sft", ["parent", "chats.jsonl"], {}),
    "sft-packed": ("sft", ["parent", "chats.jsonl"], {"packing": True, "accumulate": 2, "batch_size": 2}),
    "sft-adapter": ("sft", ["parent", "chats.jsonl"], {"adapter": 2, "adapter_kind": "dora"}),
    "dpo": ("dpo", ["parent", "pairs.jsonl"], {"accumulate": 2, "batch_size": 4}),
    "dpo-kto": ("dpo", ["parent", "pairs.jsonl"], {"loss_type": "kto", "dtype": "bfloat16"}),
    "reward": ("reward", ["parent", "pairs.jsonl"], {"accumulate": 4, "batch_size": 2}),
    "grpo": ("grpo", ["parent"], _WORDS | {"accumulate": 2, "batch_size": 4}),
    "grpo-rloo": ("grpo", ["parent"], _WORDS | _RLOO | {"dtype": "bfloat16"}),
    "grpo-tool": ("grpo", ["parent"], _SUMS | {"loss_type": "dapo", "beta": 0.05, "adapter": 2}),
    "grpo-reward": ("grpo", ["parent", "prompts.jsonl"], _JUDGED),
    "distill": ("distill", ["parent", "nano", "chats.jsonl"], _REVERSE),
    "distill-own": ("distill", ["parent", "young"], {"task": "reverse", "level": 1, "on_policy": 0.5}),
    "distill-text": ("distill", ["base", "young", "text.txt"], {"divergence": "jsd", "dtype": "bfloat16"}),
}  # fmt: skip
"""The function, its arguments, and settings. Names of runs and files are in the folder that `prepare` fills."""


def prepare(folder: Path) -> None:
    """Write files and train runs for `METHODS`: `base` on a text, `young` less so, `parent` from `base` on
    conversations, and `judge`, a reward model."""
    words, sums = ENVIRONMENTS["reverse"], ENVIRONMENTS["sums"]
    items = [words.item(i, "train", 1) for i in range(48)]
    chats = [words.messages(item, "answer") for item in items[:STEPS]]  # each step asks for one
    chats += [sums.messages(sums.item(i, "train", 1), "tool") for i in range(STEPS)]
    text = "0123456789+-*/=;#abcdefghijklmnopqrstuvwxyz: \n" + "".join(m.content + "\n" for c in chats for m in c)
    (folder / "text.txt").write_text(text * 4, encoding="utf-8")
    _write(folder / "chats.jsonl", [{"messages": [*map(_message, chat)]} for chat in chats])
    pairs = [(item.prompt, f"#{item.answer}", f"#{item.prompt[9:]}") for item in items]
    names = "prompt", "chosen", "rejected"
    _write(folder / "pairs.jsonl", [dict(zip(names, pair, strict=True)) for pair in pairs])
    _write(folder / "prompts.jsonl", [{"prompt": item.prompt} for item in items])
    quick: dict[str, Any] = TINY | {
        "sample_every": 0,
        "eval_every": 1000,
        "checkpoint_every": 1000,
        "learning_rate": 2e-2,
    }
    common: dict[str, Any] = {"out": folder, "on_event": lambda event: None}
    base = groundling.train(folder / "text.txt", name="base", **common, **quick | _SIZE | {"steps": 4})
    groundling.train(folder / "text.txt", name="young", **common, **quick | _SIZE | {"steps": 1, "warmup_steps": 0})
    quick |= {"batch_size": 32}
    parent = groundling.sft(base, folder / "chats.jsonl", name="parent", **common, **quick | {"steps": 180})
    groundling.reward(parent, folder / "pairs.jsonl", name="judge", **common, **quick | {"steps": 20})


def job(folder: Path, method: str) -> dict[str, Any]:
    """The function to call, its arguments and its settings."""
    verb, arguments, settings = METHODS[method]
    settings = TINY | settings

    def there(name: str) -> str:
        return str(folder / name) if (folder / name).exists() else name

    if "reward" in settings:
        settings["reward"] = there(settings["reward"])
    return {"verb": verb, "arguments": list(map(there, arguments)), "settings": settings}


def _message(message: Message) -> dict[str, Any]:
    calls = [{"function": {"name": call.name, "arguments": call.arguments}} for call in message.calls]
    return {"role": message.role, "content": message.content} | ({"tool_calls": calls} if calls else {})


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
