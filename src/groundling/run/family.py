"""Which run was trained from which."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def family(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The runs that descend from no other, from rows of `runs`. Each is its row with `children`, which are alike, and
    `uses`: by role, the `run` and `step` of other models that it uses, and whether they are `gone`.

    A parent that is no longer there has the status `gone`, and of the rest only what its descendants recorded.
    """
    nodes = {row["name"]: {**row, "children": [], "uses": {}} for row in rows}
    roots, gone = list[dict[str, Any]](), dict[str, dict[str, Any]]()
    for row in rows:
        node, above = nodes[row["name"]], roots
        for ancestor in row["lineage"]:
            if _is_there(ancestor, row, nodes):
                above = nodes[ancestor["run"]]["children"]
                continue
            if (key := ancestor["weights"]) not in gone:
                gone[key] = _gone(ancestor)
                above.append(gone[key])
            above = gone[key]["children"]
        above.append(node)
        node["uses"] = {
            role: {"run": other["run"], "step": other["step"], "gone": not _is_there(other, row, nodes)}
            for role, other in row["others"].items()
        }
    return roots


def _is_there(other: Mapping[str, Any], row: Mapping[str, Any], nodes: Mapping[str, Any]) -> bool:
    """Whether the folder still has the run that `row` recorded, and not a later one of the same name."""
    found = nodes.get(other["run"])
    return found is not None and found["name"] != row["name"] and (found["created"] or "") <= (row["created"] or "")


def _gone(ancestor: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "name": ancestor["run"], "task": ancestor["task"], "corpus": ancestor["corpus"], "step": ancestor["step"],
        "status": "gone", "children": [], "uses": {},
    }  # fmt: skip
