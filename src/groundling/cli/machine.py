"""Commands about this machine: doctor."""

from __future__ import annotations

from groundling.cli.app import Json, app, print_json, print_lines


@app.command(sort_key=6)
def doctor(*, json: Json = False) -> None:
    """Show what this machine offers and what groundling uses of it."""
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
            "C++ compiler found. torch.compile is used for runs that are long enough to benefit."
            if found["compiler_found"]
            else "no C++ compiler found",
        ),
        ("threads", found["threads"]),
        ("CPU", f"{cpu['name']}, {cpu['cores']} cores; matrix products {speeds}"),
        (
            "speed",
            f"{found['speed']['gflops']:,} GFLOP/s in a small model's matrix products ({found['dtype']}), "
            f"{found['speed']['gbytes']:,} GB/s memory copies",
        ),
        *(("GPU", f"{gpu['name']}, {gpu['memory'] / 1e9:.0f} GB") for gpu in found["gpus"]),
        ("memory", f"{memory['total'] / 1e9:.1f} GB, {memory['available'] / 1e9:.1f} GB free"),
        ("versions", ", ".join(f"{name} {version}" for name, version in found["versions"].items())),
        ("system", found["system"]),
        *(("reason", reason) for reason in found["reasons"]),
    ]
    print_lines(lines)
    return None
