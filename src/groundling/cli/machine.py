"""Verbs that look at the machine: doctor."""

from __future__ import annotations

from groundling.cli.app import Json, app, print_json, print_lines


@app.command(sort_key=6)
def doctor(*, json: Json = False) -> None:
    """Tell what this machine offers and what groundling will use."""
    from groundling.machine import survey

    found = survey()
    if json:
        return print_json(found)
    cpu, memory = found["cpu"], found["memory"]
    speeds = ", ".join(f"{speed:,} GFLOP/s in {name}" for name, speed in cpu["matmul_gflops"].items())
    lines = [
        ("device", found["device"]),
        ("dtype", found["dtype"]),
        (
            "compile",
            "a compiler is here, and tried where a run is long enough to gain by it"
            if found["compiler_found"]
            else "no compiler is here",
        ),
        ("threads", found["threads"]),
        ("CPU", f"{cpu['name']}, {cpu['cores']} cores; matrix products: {speeds}"),
        (
            "speed",
            f"{found['speed']['gflops']:,} GFLOP/s for a small model's products in {found['dtype']}, "
            f"{found['speed']['gbytes']:,} GB/s copied",
        ),
        *(("GPU", f"{gpu['name']}, {gpu['memory'] / 1e9:.0f} GB") for gpu in found["gpus"]),
        ("memory", f"{memory['total'] / 1e9:.1f} GB, {memory['available'] / 1e9:.1f} GB of it free"),
        ("versions", ", ".join(f"{name} {version}" for name, version in found["versions"].items())),
        ("system", found["system"]),
        *(("because", reason) for reason in found["reasons"]),
    ]
    print_lines(lines)
    return None
