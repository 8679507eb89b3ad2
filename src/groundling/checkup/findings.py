"""A check-up in sentences: what to look at before training, and what is well."""

from __future__ import annotations

from dataclasses import dataclass

from groundling.checkup.report import Report
from groundling.checkup.text import said

_NOTABLE = 0.01  # the share of text from which on repeats and leakage change what figures mean


@dataclass(frozen=True)
class Finding:
    """`look` is True where the user had better look."""

    look: bool
    sentence: str


def findings(report: Report) -> list[Finding]:
    """What stands out in the report, the most serious first."""
    found = [_leakage(report), *_repeats(report), *_oddities(report)]
    return sorted(found, key=lambda finding: not finding.look)


def _leakage(report: Report) -> Finding:
    leak = report.leakage
    if not leak.leaked:
        return Finding(False, f"No {leak.window} characters of the validation part stand in the training part.")
    sentence = f"{_percent(leak.share)} of the validation part's {leak.window}-character windows stand verbatim in the "
    sentence += "training part"
    if leak.share < _NOTABLE:
        return Finding(False, sentence + ".")
    return Finding(True, sentence + ": the validation loss will look better than the model is. Remove what is double.")


def _repeats(report: Report) -> list[Finding]:
    found = []
    for repeats in report.duplicates.exact:
        if repeats.repeated:
            counted = f"{repeats.repeated:,} of {repeats.units:,} {repeats.unit}s repeat an earlier one"
            look = repeats.share >= _NOTABLE
            more = ": they are learned by heart first; keep one of each." if look else "."
            found.append(Finding(look, f"{counted} ({_percent(repeats.share)} of the characters){more}"))
    near = report.duplicates.near
    if near.repeated:
        look = near.share >= _NOTABLE
        least = "" if near.complete else "At least "
        counted = f"{least}{near.repeated:,} of {near.units:,} {near.unit}s are nearly the same as another"
        found.append(Finding(look, f"{counted} ({_percent(near.share)} of the characters)."))
    return found or [Finding(False, "Nothing in it is repeated.")]


def _oddities(report: Report) -> list[Finding]:
    found = []
    for oddity in report.text.oddities:
        places = f" First in {said(oddity.places)}." if oddity.places else ""
        found.append(Finding(True, oddity.sentence + places))
    return found or [Finding(False, "No control characters, no damaged or mixed encodings, one kind of line end.")]


def _percent(share: float) -> str:
    return "less than 0.1 %" if 0 < share < 0.001 else f"{100 * share:.1f} %"
