"""From what a user names to the folder with a model's files.

That is a folder, a file in it, a place in Hugging Face's cache, or the id of a model there. What cannot be imported is
explained. Nothing is downloaded.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from groundling.config.paths import user_path
from groundling.escape import command, quoted
from groundling.storage.safe_read import check_folder, read_bytes

_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")  # gpt2, or Qwen/Qwen3-0.6B
_PREFIX = "models--"  # a model's folder in the cache: models--Qwen--Qwen3-0.6B, with blobs, refs and snapshots

_TO_SAFETENSORS = (
    "import sys; from transformers import AutoModelForCausalLM as M, AutoTokenizer as T; a, b = sys.argv[1:]; "
    "M.from_pretrained(a).save_pretrained(b); T.from_pretrained(a).save_pretrained(b)"
)


def find_model(given: str | os.PathLike[str], config: str = "config.json") -> tuple[Path, str]:
    """The folder with the files of a model, and the model's name. `config` is the file that makes it one.

    Raises FileNotFoundError or ValueError with a sentence if there is none, or if a link leads out of the folder: in a
    cache, links may lead to its blobs.
    """
    path = _existing(given)
    if path.is_file():
        if not path.name.endswith((".json", ".safetensors")):
            raise ValueError(f"{path} cannot be imported. {_explanation(path.parent, [path.name])}")
        path = path.parent
    if not (path / config).is_file():
        path = _snapshot(path)
    real = path.resolve()
    model = real.parents[1] if real.parent.name == "snapshots" else None
    check_folder(path, *([model / "blobs", model.parent / "blobs"] if model else []))  # some versions share the blobs
    if not (path / config).is_file():
        raise FileNotFoundError(f"{path} contains no {config}. {explain(path)}")
    return path, real.name if model is None else model.name.removeprefix(_PREFIX).rpartition("--")[2]


def explain(folder: Path) -> str:
    """What a folder holds instead of a model that can be imported, and what to do."""
    return _explanation(folder, sorted(os.listdir(folder)) if folder.is_dir() else [])


def _explanation(folder: Path, names: list[str]) -> str:
    if "adapter_config.json" in names:
        again = command("import", str(folder), "--base", "RUN")
        return f"It is an adapter (PEFT). Import its model first, and give that run's name as --base: `{again}`."
    kinds = {name.rpartition(".")[2].lower() for name in names}
    if kinds & {"bin", "pt", "pth", "ckpt"}:
        here = str(folder.absolute())
        return (
            "Its weights are pickled, which could run code, so groundling does not open them. If you trust them, make "
            'a folder with safetensors, after pip install "groundling[export]": '
            f'python -c "{_TO_SAFETENSORS}" {quoted(here)} {quoted(here + "-safetensors")}'
        )
    for kind, format in {"gguf": "GGUF", "onnx": "ONNX", "h5": "TensorFlow", "msgpack": "Flax"}.items():
        if kind in kinds:
            return f"groundling does not import {format}. Give the model's folder in Hugging Face format."
    if "params.json" in names:
        return "It is in its authors' own format. Use the same model in Hugging Face format."
    inside = next((name for name in names if (folder / name / "config.json").is_file()), None)
    if inside is not None:
        return f"Did you mean {folder / inside}?"
    if folder.resolve().parent.name == "snapshots":
        return f"The download is incomplete. Repeat it: {_download(folder.resolve().parents[1])}"
    return "Give the folder of a model in Hugging Face format, with config.json, safetensors and a tokenizer."


def _existing(given: str | os.PathLike[str]) -> Path:
    """The path, or the model's folder in Hugging Face's cache if `given` is an id and no path."""
    id = Path(given).as_posix()
    if os.path.lexists(os.path.expanduser(given)) or not _ID.fullmatch(id):
        path = user_path("FOLDER", given)
        if not path.exists():
            raise FileNotFoundError(f"There is no file or folder {path}.")
        return path
    cache = _cache()
    model = cache / (_PREFIX + id.replace("/", "--"))
    if not model.is_dir():
        raise FileNotFoundError(
            f"There is no folder {given}, and no model of this name in Hugging Face's cache, {cache}. "
            f"To download it there: {_download(model)}"
        )
    return model


def _cache() -> Path:
    """Where Hugging Face's programs download models to."""
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    home = os.environ.get("HF_HOME") or os.path.join(home, "huggingface")
    cache = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE") or os.path.join(home, "hub")
    return Path(os.path.expandvars(cache)).expanduser()


def _download(model: Path) -> str:
    return f"hf download {quoted(model.name.removeprefix(_PREFIX).replace('--', '/'))}"


def _snapshot(path: Path) -> Path:
    """The files of the model in a cache, if `path` is the cache, a model in it, or a part of that; else `path`."""
    models = [path] if path.name.startswith(_PREFIX) else []
    if path.name in ("blobs", "refs", "snapshots"):
        models = [path.absolute().parent]
    for folder in () if models else (path, path / "hub"):
        models += [each for each in sorted(folder.glob(f"{_PREFIX}*")) if each.is_dir()]
    models = [each for each in models if (each / "snapshots").is_dir()]
    if len(models) > 1:
        ids = [model.name.removeprefix(_PREFIX).replace("--", "/") for model in models]
        raise ValueError(f"{path} holds {len(models)} models. Give one of their names, such as {', '.join(ids[:5])}.")
    if not models:
        return path
    snapshots = [each for each in (models[0] / "snapshots").iterdir() if each.is_dir()]
    if not snapshots:
        raise FileNotFoundError(f"{models[0]} contains no files. Download the model again: {_download(models[0])}")
    main = models[0] / "refs" / "main"
    commit = read_bytes(main, 1000).decode("ascii", "replace").strip() if main.is_file() else ""
    return max(snapshots, key=lambda each: (each.name == commit, each.stat().st_mtime))
