#!/bin/sh
# Everything that a GPU should be asked, in one command of at most nine minutes: see gpu.py for the options.
#
#     benchmarks/gpu.sh --out gpu.json --text tinyshakespeare.txt --nanogpt DIR
#     benchmarks/gpu.sh --dry-run            # every part, tiny, on the CPU
#
# It needs a checkout and a Python with PyTorch ($PYTHON, or python3). Other packages that are missing are installed with
# pip, never PyTorch itself. Without a network, the parts that need a missing package fail, and the others are measured.
root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
python=${PYTHON:-python3}
export PYTHONPATH="$root/src${PYTHONPATH:+:$PYTHONPATH}"
if ! "$python" -c "import torch" 2>/dev/null; then
    echo "gpu.sh: $python has no PyTorch. Set PYTHON to one that has." >&2
    exit 1
fi
missing=$("$python" - "$root/pyproject.toml" <<'END'
import importlib.metadata, re, sys, tomllib

def installed(name):
    try:
        return bool(importlib.metadata.version(name))
    except importlib.metadata.PackageNotFoundError:
        return False

with open(sys.argv[1], "rb") as file:
    wanted = tomllib.load(file)["project"]["dependencies"] + ["pytest>=8.0", "pytest-timeout>=2.3", "hypothesis>=6.100"]
print(*(each for each in wanted if not installed(re.match(r"[\w.-]+", each)[0])))
END
)
if [ -n "$missing" ]; then
    # shellcheck disable=SC2086  # one word for each package
    "$python" -m pip install --quiet $missing || echo "gpu.sh: pip could not install: $missing" >&2
fi
exec "$python" "$root/benchmarks/gpu.py" "$@"
