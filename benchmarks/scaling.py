"""The picture and the tables of docs/scaling.md: estimates for 1 to 1,024 GPUs. Nothing is measured here.

python benchmarks/scaling.py --out docs/images/scaling.png
"""

from __future__ import annotations

import argparse
from pathlib import Path

from groundling.config import PRESETS
from groundling.planning.devices import DEVICES
from groundling.planning.scaling import Estimate, best, divisible

COUNTS = [2**n for n in range(11)]
NAMES = ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl")
WINDOWS = 480  # the presets' step; more devices than that get a window each


def fastest(name: str, count: int, device: str, windows: int = WINDOWS) -> Estimate | None:
    found = best(divisible(PRESETS[name].model, 50_257, windows, count), count, DEVICES[device])
    return found[0] if found else None


def words(found: Estimate) -> str:
    at = found.layout
    parts = [f"{at.kind} {at.data}"]
    parts += [f"{name} {n}" for name, n in (("tensor", at.tensor), ("pipeline", at.pipeline)) if n > 1]
    return (
        " × ".join(parts)
        + f", {at.micro_batch} window{'s' * (at.micro_batch > 1)} at once"
        + (", recompute" if at.recompute else "")
    )


def table(device: str) -> None:
    print(f"\n| model | {device}s | layout | memory, GB | of peak | tokens/s | days for 100 billion tokens |")
    print("|---|---|---|---|---|---|---|")
    for name in NAMES:
        for count in (8, 64, 1024):
            if (found := fastest(name, count, device)) is not None:
                print(f"| {name} | {count:,} | {words(found)} | {found.memory / 1e9:.0f} | {found.share_of_peak:.0%} | "
                      f"{found.tokens_per_second:,.0f} | {1e11 / found.tokens_per_second / 86400:.2f} |")  # fmt: skip


def draw(out: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (speed, share) = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    for name in NAMES:
        found = {count: fastest(name, count, "h100") for count in COUNTS}
        counts = [count for count, each in found.items() if each is not None]
        rates = [found[count].tokens_per_second for count in counts]  # type: ignore[union-attr]
        (line,) = speed.plot(counts, rates, marker="o", markersize=4, label=name)
        speed.plot([counts[0], 1024], [rates[0], rates[0] * 1024 / counts[0]], ":", color=line.get_color(), linewidth=1)
        share.plot(counts, [100 * found[count].share_of_peak for count in counts],  # type: ignore[union-attr]
                   marker="o", markersize=4, label=name)  # fmt: skip
    large = {count: fastest("gpt2-xl", count, "h100", windows=8192) for count in COUNTS}
    counts = [count for count, each in large.items() if each is not None]
    share.plot(counts, [100 * large[count].share_of_peak for count in counts], "--", color="gray",  # type: ignore[union-attr]
               label="gpt2-xl, 8.4M tokens a step")  # fmt: skip
    for axis in (speed, share):
        axis.set_xscale("log", base=2)
        axis.set_xticks(COUNTS, [f"{count:,}" for count in COUNTS], fontsize=8)
        axis.set_xlabel("H100 GPUs")
        axis.grid(alpha=0.3)
    speed.set_yscale("log")
    speed.set_ylabel("tokens per second")
    speed.set_title("Estimated speed (dotted: proportional)")
    share.set_ylim(0, 55)
    share.set_ylabel("% of the peak")
    share.set_title("Estimated share of the peak")
    speed.legend(fontsize=8)
    share.legend(fontsize=8, loc="lower left")
    figure.savefig(out, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the picture")
    options = parser.parse_args()
    draw(options.out)
    for device in ("h100",):
        table(device)


if __name__ == "__main__":
    main()
