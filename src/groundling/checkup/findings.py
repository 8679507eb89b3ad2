"""A check-up in sentences: warnings first, then what is fine."""

from __future__ import annotations

from dataclasses import dataclass

from groundling.checkup.report import Report
from groundling.checkup.text import said

_NOTABLE = 0.01  # the share of repeats or leakage from which loss figures mislead


@dataclass(frozen=True)
class Finding:
    """`look` is True for a warning."""

    look: bool
    sentence: str


def findings(report: Report) -> list[Finding]:
    """What stands out in the report, warnings first."""
    found = [_leakage(report), *_repeats(report), *_oddities(report)]
    return sorted(found, key=lambda finding: not finding.look)


def _leakage(report: Report) -> Finding:
    leak = report.leakage
    if not leak.leaked:
        return Finding(False, f"No leakage: training and validation part share no {leak.window} characters in a row.")
    windows = f"{leak.window}-character windows"
    leaked = f"{_percent(leak.share)} of the validation part's {windows} also occur in the training part"
    if leak.share < _NOTABLE:
        return Finding(False, f"{leaked}.")
    return Finding(True, f"{leaked}. The validation loss will look better than the model is. Remove the duplicates.")


def _repeats(report: Report) -> list[Finding]:
    found = []
    for repeats in report.duplicates.exact:
        if repeats.repeated:
            counted = f"{repeats.repeated:,} of {repeats.units:,} {repeats.unit}s repeat an earlier one"
            look = repeats.share >= _NOTABLE
            advice = ": models memorize them first. Keep one of each." if look else "."
            found.append(Finding(look, f"{counted} ({_percent(repeats.share)} of the characters){advice}"))
    near = report.duplicates.near
    if near.repeated:
        least = "" if near.complete else "At least "
        counted = f"{least}{near.repeated:,} of {near.units:,} {near.unit}s are nearly the same as another"
        found.append(Finding(near.share >= _NOTABLE, f"{counted} ({_percent(near.share)} of the characters)."))
    return found or [Finding(False, "No repeats.")]


def _oddities(report: Report) -> list[Finding]:
    found = []
    for oddity in report.text.oddities:
        places = f" First in {said(oddity.places)}." if oddity.places else ""
        found.append(Finding(True, oddity.sentence + places))
    return found or [Finding(False, "No control characters, one encoding, one kind of line end.")]


def _percent(share: float) -> str:
    return "less than 0.1 %" if 0 < share < 0.001 else f"{100 * share:.1f} %"
