"""Train and score the published nanoGPT, from a checkout of its repository. No code of it is copied here."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

# From its README, for a laptop's CPU. They override those in its config/train_shakespeare_char.py.
LAPTOP = (
    "--device=cpu --compile=False --eval_iters=20 --log_interval=1 --block_size=64 --batch_size=12 --n_layer=4 "
    "--n_head=4 --n_embd=128 --max_iters=2000 --lr_decay_iters=2000 --dropout=0.0"
)


def prepare(folder: Path, text: Path) -> tuple[str, int]:
    """Write `text` as the token files that nanoGPT's train.py reads. Returns the name of the dataset and the vocabulary
    size.

    The first nine tenths are the training part, as in nanoGPT. Tokens are the sorted characters, as in groundling.
    """
    content = text.read_text(encoding="utf-8")
    ids = {character: i for i, character in enumerate(sorted(set(content)))}
    tokens = np.array([ids[character] for character in content], dtype=np.uint16)
    cut = int(len(tokens) * 0.9)
    target = folder / "data" / "frontier"
    target.mkdir(exist_ok=True)
    tokens[:cut].tofile(target / "train.bin")
    tokens[cut:].tofile(target / "val.bin")
    return target.name, len(ids)


def train(folder: Path, dataset: str, vocab_size: int, options: str, out: Path) -> float:
    """Run nanoGPT's train.py. Only the vocabulary size is changed. Returns the wall-clock time in seconds."""
    command = [sys.executable, "-c", _LAUNCHER, str(vocab_size), "config/train_shakespeare_char.py", *options.split(),
               f"--dataset={dataset}", f"--out_dir={out}"]  # fmt: skip
    start = time.perf_counter()
    subprocess.run(command, cwd=folder, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - start


# train.py reads the vocabulary size from a pickle, and without one uses 50,304. This sets it without a pickle.
_LAUNCHER = """
import sys
_, size, *arguments = sys.argv
sys.argv = ["train.py", *arguments]
sys.path.insert(0, "")
source = open("train.py").read().replace("meta_vocab_size = None", f"meta_vocab_size = {size}")
exec(compile(source, "train.py", "exec"), {"__name__": "__main__", "__file__": "train.py"})
"""


@torch.inference_mode()
def score(folder: Path, checkpoint: Path, tokens: np.ndarray[Any, Any]) -> float:
    """The loss of a checkpoint over all of `tokens`, in windows of its context that do not overlap."""
    sys.path.insert(0, str(folder))
    import model as nanogpt

    saved = torch.load(checkpoint, map_location="cpu", weights_only=True)
    model = nanogpt.GPT(nanogpt.GPTConfig(**saved["model_args"]))
    model.load_state_dict({name.removeprefix("_orig_mod."): value for name, value in saved["model"].items()})
    model.eval()
    T, nats, count = model.config.block_size, 0.0, 0
    ids = torch.from_numpy(tokens.astype(np.int64))
    for start in range(0, len(ids) - 1, T):
        window = ids[start : start + T + 1]
        logits, _ = model(window[None, :-1], targets=window[None, 1:])  # with targets, it returns all positions
        nats += float(F.cross_entropy(logits[0].float(), window[1:], reduction="sum"))
        count += len(window) - 1
    return nats / count
