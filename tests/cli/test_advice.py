"""Advice can be followed: what a refusal says to try is tried."""

from __future__ import annotations

import ast
import io
import re
from collections.abc import Iterator
from contextlib import chdir, redirect_stderr, redirect_stdout
from functools import cache
from pathlib import Path

import pytest
from options import options

import groundling
from groundling.__main__ import main
from tiny import TINY as SETTINGS

SRC = Path(groundling.__file__).parent
SHORT = {
    "TINY": "--preset nano --n-layer 1 --n-head 1 --n-embd 8 --block-size 8 --batch-size 2 --steps 2 --sample-every 0",
    "TUNE": "--steps 1 --sample-every 0",
    "OLDER": "runs/first/checkpoints/step-000002",
}

# What is refused, a part of the sentence, and what it says to do. That works, or ends at the obstacle named last.
WALKED = [
    ("train short.txt TINY --block-size 32", "--block-size 26", "train short.txt TINY --block-size 26", ""),
    ("train forty.txt TINY --block-size 32 --val-fraction 0.5", "a smaller --val-fraction",
     "train forty.txt TINY --block-size 32 --val-fraction 0.1", ""),
    ("train forty.txt TINY --val-fraction 0.01", "a larger --val-fraction", "train forty.txt TINY", ""),
    ("train short.txt --init-from first --steps 1", "Use a longer text.", "train prose.txt --init-from first TUNE", ""),
    ("train forty.txt --init-from first --steps 1 --val-fraction 0.5",
     "Use a longer text, or a smaller --val-fraction.",
     "train forty.txt --init-from first TUNE --val-fraction 0.1", ""),
    ("train prose.txt --init-from first --block-size 64 --steps 1", "Add --rope-scaling yarn:",
     "train prose.txt --init-from first --block-size 64 --rope-scaling yarn:2:32 TUNE", ""),
    ("train prose.txt TINY --sliding-layers SX", "use a pattern of S and F, such as SSSF.",
     "train prose.txt TINY --sliding-layers SSSF", "does nothing without --sliding-window"),
    ("train prose.txt TINY --sliding-layers SF", "does nothing without --sliding-window.",
     "train prose.txt TINY --name first --sliding-layers SF --sliding-window 4",
     "The run first exists with other settings"),
    ("train prose.txt --init-from first --n-layer 1 --tokenizer byte --steps 1",
     "You cannot set --n-layer and --tokenizer with",
     "train prose.txt --init-from first TUNE", ""),
    ("train prose.txt --mix forty.txt=1 TINY", "Use CORPUS or --mix, not both", "train --mix prose.txt=1 TINY", ""),
    ("train --mix prose.txt TINY", "give each text a weight, such as prose.txt=0.5.",
     "train --mix prose.txt=0.5 TINY", ""),
    ("train --mix prose.txt=x TINY", "or two with a colon, such as 0.9:0.1.",
     "train --mix prose.txt=0.9:0.1 forty.txt=0.1:0.9 TINY", ""),
    ("train --mix prose.txt=1 prose.txt=1 TINY", "Give each text once, with its whole weight.",
     "train --mix prose.txt=2 TINY", ""),
    ("train --mix prose.txt=-1 TINY", "--mix: a weight must be 0 or a positive number, not -1.0.",
     "train --mix prose.txt=1 TINY", ""),
    ("train --mix prose.txt=0 forty.txt=0 TINY", "Give some text a positive weight.",
     "train --mix prose.txt=0 forty.txt=1 TINY", ""),
    ("train --mix *.txt=1 TINY", "Instead of a pattern, give a folder and --glob.",
     "train --mix .=1 --glob *.txt TINY", ""),
    ("train --mix prose.txt=1 short.txt=1 TINY --block-size 32", "--mix: short is too short. The training part has",
     "train --mix prose.txt=1 short.txt=1 TINY --block-size 26", ""),
    ("plan --gpus 1 --gpu rtx4090", "Use more --gpus", "plan --gpus 8 --gpu rtx4090", ""),
    ("plan --gpus 1 --gpu rtx4090", "another --gpu", "plan --gpus 1 --gpu h200", ""),
    ("plan --gpus 1 --gpu rtx4090", "or --optimizer-bits 8.", "plan --gpus 1 --gpu rtx4090 --optimizer-bits 8", ""),
    ("plan --gpus 1 --context 1000000", "a shorter --context", "plan --gpus 1 --context 1024", ""),
    ("tasks --write x.jsonl", "--write needs a task, as in `", "tasks sums --write x.jsonl --n 2", ""),
    ("tasks reverse --write x.jsonl --n 2 --style tool", "Use --style working.",
     "tasks reverse --write x.jsonl --n 2 --style working", ""),
    ("grpo first --steps 1", "Give either a --task, or a --reward model and --prompts.",
     "grpo first --task sums TUNE", "The task sums at level 2 needs up to"),
    ("grpo first --reward first --steps 1", "A --reward model needs --prompts",
     "grpo first --reward first --prompts nowhere.jsonl", "The run first is no reward model."),
    ("distill first first prose.txt --on-policy 0.5 TUNE", "--on-policy needs the prompts of a --task.",
     "distill first first prose.txt TUNE", ""),
    ("train prose.txt --minutes 1 --steps 2", "Use --minutes or --steps, not both.",
     "train prose.txt TINY --name first", "The run first exists with other settings"),
    ("train prose.txt TINY --n-embd 100 --n-head 3", "Choose a multiple of 3",
     "train prose.txt TINY --name first --n-embd 99 --n-head 3", "The run first exists with other settings"),
    ("train prose.txt TINY --n-embd 100 --n-head 3", "or set --head-size.",
     "train prose.txt TINY --name first --n-embd 100 --n-head 3 --head-size 4",
     "The run first exists with other settings"),
    ("train prose.txt TINY --n-head 4 --n-kv-head 3", "Choose one of its divisors.",
     "train prose.txt TINY --name first --n-head 4 --n-kv-head 2", "The run first exists with other settings"),
    ("train prose.txt TINY --n-embd 9 --n-head 3 --position rope",
     "Set --head-size, or change --n-embd 9 or --n-head 3.",
     "train prose.txt TINY --name first --n-embd 9 --n-head 3 --position rope --head-size 4",
     "The run first exists with other settings"),
    ("train prose.txt TINY --n-embd 9 --n-head 3 --position rope", "or change --n-embd 9 or --n-head 3.",
     "train prose.txt TINY --name first --n-embd 12 --n-head 3 --position rope",
     "The run first exists with other settings"),
    ("train prose.txt TINY --rope-scaling wide", "use none, linear:FACTOR, yarn:FACTOR:CONTEXT, or llama3:",
     "train prose.txt TINY --name first --position rope --rope-scaling llama3:8:1:4:8192",
     "The run first exists with other settings"),
    ("train prose.txt TINY --patience 2 --generations 2", "Use --patience or --generations, not both",
     "train prose.txt TINY --name first --patience 2", "The run first exists with other settings"),
    ("train prose.txt TINY --generations 3 --warmup-steps 0", "needs at least as many --steps",
     "train prose.txt TINY --name first --generations 3 --steps 3", "The run first exists with other settings"),
    ("train prose.txt TINY --warmup-steps 2", "must be fewer than --steps 2",
     "train prose.txt TINY --name first --warmup-steps 1", "The run first exists with other settings"),
    ("train prose.txt TINY --tokenizer bype", "input should be char, byte, bpe",
     "train prose.txt TINY --name first --tokenizer byte", "The run first exists with other settings"),
    ("train prose.txt TINY --device toaster", "Use auto, cpu, cuda, cuda:N or mps.",
     "train prose.txt TINY --name first --device auto", "The run first exists with other settings"),
    ("train prose.txt TINY --device cuda:99", "Available: ",
     "train prose.txt TINY --name first --device cpu", "The run first exists with other settings"),
    ("train prose.txt TINY --glob *.txt", "put it in quotes: --glob '*.txt'.", "train . TINY --glob *.txt", ""),
    ("train runs/first TINY", "give a text and --init-from", "train prose.txt --init-from runs/first TUNE", ""),
    ("train prose.txt TINY --name first", "Use another --name.", "train prose.txt TINY --name second", ""),
    ("train prose.txt --preset laptop --steps 2 --name first", "--preset nano instead of laptop). Use another --name.",
     "train prose.txt TINY --name second", ""),
    ("train rows.jsonl TINY", "Choose one with --field,", "train rows.jsonl TINY --field body", ""),
    ("train rows.jsonl TINY --field n", "Choose another with --field, or", "train rows.jsonl TINY --field body", ""),
    ("train rows.jsonl TINY", "or use --format text", "train rows.jsonl TINY --format text", ""),
    ("train page.html TINY", "use --format text.", "train page.html TINY --format text", ""),
    ("train one.json TINY", "use --format text.", "train one.json TINY --format text", ""),
    ("train prose.txt TINY --name a*b", "such as 'a-b'", "train prose.txt TINY --name a-b", ""),
    ("train snowy.txt --init-from first TUNE", "Remove it", "train prose.txt --init-from first TUNE", ""),
    ("resume first", "use --steps N or --minutes N", "resume first --steps 1", "is already at step"),
    ("resume first --minutes 1 --steps 2", "Use --minutes or --steps, not both.", "resume first --steps 1", "already"),
    ("resume OLDER", "use --init-from", "train prose.txt --init-from OLDER TUNE", ""),
    ("sample first --prompt ☃", "--unknown skip (sample, chat, eval, serve)",
     "sample first --prompt ☃ --unknown skip", ""),
    ("eval first --text snowy.txt", "--unknown skip (sample, chat, eval, serve)",
     "eval first --text snowy.txt --unknown skip", ""),
    ("course submit first --author=", "--author must have 1 to 100",
     "course submit first --author Ada --max-new-tokens 2", ""),
    ("eval first --level 2", "need a --task.", "eval first --level 2 --task sums", "has no chat template"),
    ("eval first --task sums --sliding", "--sliding, --by-position and --html are for a loss.",
     "eval first --sliding", ""),
    ("inspect rows.jsonl --examples 2", "--out need --with,", "inspect rows.jsonl --examples 2 --with first",
     "expected messages"),
    ("inspect rows.jsonl --with first --tokenizer byte", "You cannot set --tokenizer with --with:",
     "inspect rows.jsonl --with first", "expected messages"),
    ("sample first --prompt a --prompt-file prose.txt", "Use --prompt or --prompt-file, not both.",
     "sample first --prompt-file prose.txt --max-new-tokens 1", ""),
    ("sample first -prompt a", "two hyphens: --prompt", "sample first --prompt a --max-new-tokens 1", ""),
    ("export first --to gguf --quantize int8", "Use f16 or ", "export first --to gguf --quantize q8_0 --out q", ""),
    ("export narrow --to gguf --quantize q8_0", "Use --quantize f16.",
     "export narrow --to gguf --quantize f16 --out f", ""),
    ("export first --to gguf --out .", "Choose another folder with --out", "export first --to gguf --out g", ""),
    ("eject first --out .", "is not an empty folder. Choose another folder with --out", "eject first --out e", ""),
    ("share first --to prose.txt", "Choose another file with --to, or delete this one.", "share first --to s.html", ""),
    ("export first --to gguf --average 9", "Use a smaller --average.",
     "export first --to gguf --average 2 --out a", ""),
    ("export first --to gguf --average 9", "train with a larger --keep-checkpoints",
     "train prose.txt TINY --name first --keep-checkpoints 9", "The run first exists with other settings"),
    ("serve first --port 0 --host 0.0.0.0 --slots 0", "--slots must be at least 1",
     "serve first --port 0 --host 0.0.0.0 --slots 1", "so it needs --api-key"),
    ("serve nobody --port 0 --host 0.0.0.0", "so it needs --api-key",
     "serve nobody --port 0 --host 0.0.0.0 --api-key k", "No run 'nobody'"),
    ("serve nobody --port 0 --api-key=", "Set --api-key", "serve nobody --port 0 --api-key k", "No run 'nobody'"),
    ("serve nobody --port 0 --allow-host a.example", "--allow-host needs --api-key",
     "serve nobody --port 0 --allow-host a.example --api-key k", "No run 'nobody'"),
    ("serve nobody --port 0 --allow-host http://a/ --api-key k", "such as my.example",
     "serve nobody --port 0 --allow-host my.example --api-key k", "No run 'nobody'"),
    ("serve nobody --port 0 --studio --api-key k", "--studio needs a loopback --host and no API key",
     "serve nobody --port 0 --studio", "No run 'nobody'"),
    ("serve nobody --port 70000", "--port must be at most 65,535", "serve nobody --port 0", "No run 'nobody'"),
]  # fmt: skip

# Sentences that name an option and are not tried here.
ELSEWHERE = {
    "Unexpected ": "--debug only shows more",
    "does not work with --to peft": "tests/interchange/test_adapters.py",
    "Use --to huggingface.": "tests/interchange/test_adapters.py",
    "was trained on as --base": "tests/parity/test_peft.py", "the context is that of the base": "the same",
    "give that run's name as --base": "tests/interchange/test_find_model.py",
    "not on a text. Give one with --text.": "tests/run/test_tune.py",
    "--style must be one of": "Python alone: the command line offers the choices itself",
    "has no working. Use --style answer.": "tests/environments/test_reasoning_gym.py",
    "or name the one with the messages with --field": "tests/data/test_conversations.py",
    "Use a larger --max-completion-length, or run": "tests/run/test_tune.py",
    "Use a higher --temperature.": "tests/run/test_tune.py", "A --task makes its own.": "the same",
    "Use a harder --level.": "tests/run/test_tune.py", "or use an easier --level.": "tests/run/test_tune.py",
    "or a model with a larger --block-size.": "tests/run/test_tune.py",
    "or with --tokenizer byte.": "tests/run/test_tune.py",
    "choose one of ": "Python alone: the command line offers the choices itself",
    "is unknown. Use one of": "Python alone: the command line offers the choices itself",
    "works only on CPUs": "needs a GPU", "CUDA device(s)": "needs a GPU",
    "its library is not installed": "tests/reporting/test_trackers.py", "could not start": "names what was given",
    "Close other programs, or train a smaller model": "tests/training/test_out_of_memory.py",
    "use another disk with --out": "tests/reliability/test_faults.py", "--out or GROUNDLING_RUNS": "tests/storage",
    "Training diverged": "tests/training/test_divergence.py", " and --matrix-learning-rate": "the same",
    "Run {} already exists": "tests/interchange/test_import_model.py",
    "was imported, without a text": "tests/interchange/test_import_model.py",
    "No other engine supports this mixture": "tests/interchange/test_architectures.py",
    "No other engine supports this model with --sliding-window": "the same",
    "is for models with RoPE": "tests/run/test_longer_context.py",
    "with --rope-scaling": "tells what was done",
    "Memory is short": "tells what was done",
    "Use --to huggingface or --to onnx.": "tests/interchange/test_architectures.py",
    "is too large: this model's": "tests/interchange/test_import_model.py",
    "are from different generations": "tests/interchange/test_export.py",
    "More --items make it narrower": "tests/cli/test_task_score.py",
    "call the calculator, and nobody answers": "tests/cli/test_task_score.py",
    "--average needs the run's text": "tests/interchange/test_export.py",
    "This tokenizer changes the text": "tests/data/test_tokenizer.py",
    "The text at": "tests/run/test_changed_text.py",
    "The training text changed at step": "tells what was done",
    "Resuming unfinished run": "a notice; --name is tried above", "read the same files otherwise": "tests/run",
    "has already trained for": "names what was given", "The Host header names": "tests/web/test_guard.py",
    "is not an address or name of this machine": "names what was given", "Cannot listen on port": "tests/web",
    "Use --seed": "tests/test_cli.py",
    "Size, steps and loss here": "a report's words; --tokenizer is an option of train",
    "--prompt-file {}": "begins sentences",
    "use --format text": "tests/data/test_formats.py reads each such file so",
    "then a text and --init-from": "tests/data/test_sources.py; imported runs are trained in tests/interchange",
    "so there is nothing to average": "tests/interchange/test_find_model.py",
    "not matching --glob": "counts what was left out", "Add --debug": "the help",
    "were dropped (--unknown skip)": "tells what was done", "jupyter nbconvert": "another program",
    "ends a document (--document-separator '' turns this off)": "tests/data",
    "separates nothing: each file is one document": "a notice; tests/data/test_formats.py",
    "is already at step": "names what was given", "--grad-clip 1": "part of the sentence on divergence",
    "--api-key KEY": "part of the sentence on the Host header",
    "A process that prepared the text was ended": "tests/data/test_shard_faults.py",
    "--executor ray needs": "tests/cli/test_prepare.py", "Ray cannot use the cluster": "tests/cli/test_prepare.py",
    "does nothing with --executor ray": "tests/cli/test_prepare.py",
    "does nothing without --executor ray": "tests/cli/test_prepare.py",
    "This machine does not see": "tests/parallel/test_two_machines.py",
    "Start {} with the command `groundling`": "tests/parallel/test_mesh.py",
    "processes that each read some of its rows": "tests/parallel/test_mesh.py",
    "cannot be divided by --tensor-parallel": "tests/parallel/test_mesh.py",
    "--parallel fsdp does not work with": "tests/parallel/test_mesh.py",
    "Leave one of them out.": "tests/parallel/test_divided.py",
    "{} does not work with --": "tests/parallel/test_divided.py",
    "Use --tensor-parallel with one of them.": "tests/parallel/test_divided.py",
    "--for {} is unknown": "tests/course/test_class.py", "install --no-index": "the same",
    "is finished. To train it again": "tests/course/test_chapters.py",
    "With --optimizer-bits 8, moments": "says what a plan assumes",
    "Use --optimizer-bits 32, or fewer ranks.": "tests/training/test_optimizer_8bit.py",
    "gives all ranks equal parts": "tests/parallel/test_divided.py",
    "heads (--n-": "tests/parallel/test_divided.py", "hidden units in each MLP": "tests/parallel/test_divided.py",
    "needs a block for each rank": "tests/parallel/test_divided.py",
    "--processes and torchrun work with": "tests/parallel/test_processes.py",
    "is too many for this machine": "names what was given",
    "--mix takes 1 to": "tests/config/test_mix_weights.py",
    "are read already, by a text before it": "tests/data/test_mixture.py",
    "weights of --mix do not add up to 1": "a notice; tests/run/test_mix.py",
    "Give one of them with --text.": "tests/run/test_mix.py",
    "--average compares losses on one text": "tests/run/test_mix.py",
}  # fmt: skip
NARROW = {"n_embd": 24, "mlp_size": 20, "steps": 1}  # no size is a multiple of 32
# Advice in reports, docs, examples.
NO_REFUSALS = {"diagnosis.py", "tuning_diagnosis.py", "interchange.py", "model_card.py", "record.py"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, prose: str) -> Path:
    """A working folder with texts, and runs in `runs`."""
    folder = tmp_path_factory.mktemp("advice")
    texts = {"prose.txt": prose, "short.txt": prose[:30], "forty.txt": "The class def " * 3, "snowy.txt": "The ☃ " * 8,
             "rows.jsonl": '{"body": "some text", "n": 3}\n' * 20, "one.json": '{\n "a": [1, 2, 3],\n "b": "text"\n}\n',
             "page.html": "<!doctype html><html><body>" + "text " * 20 + "</body></html>"}  # fmt: skip
    for name, text in texts.items():
        (folder / name).write_text(text[:40] if name == "forty.txt" else text, encoding="utf-8", newline="")
    tiny = SETTINGS | {"steps": 4, "eval_every": 2, "checkpoint_every": 2, "warmup_steps": 0, "sample_every": 0}
    tiny |= {"norm": "rmsnorm", "position": "rope", "mlp": "swiglu"}  # GGUF cannot hold biases that are almost 0
    with chdir(folder), pytest.MonkeyPatch.context() as patch:
        patch.setenv("GROUNDLING_CACHE", str(folder / "cache"))
        groundling.train("prose.txt", name="first", on_event=lambda event: None, **tiny)
        groundling.train("prose.txt", name="narrow", on_event=lambda event: None, **tiny | NARROW)
    return folder


@cache
def call(folder: Path, command: str) -> tuple[int, str]:
    """Run a command in the folder: its status, and what it printed to standard error."""
    words, given = list[str](), command.split()
    for word in given:
        options = SHORT.get(word, word).split()
        if len(options) > 1:  # those that the command does not give itself
            pairs = zip(options[::2], options[1::2], strict=True)
            options = [word for pair in pairs if pair[0] not in given for word in pair]
        words += options
    err = io.StringIO()
    with chdir(folder), pytest.MonkeyPatch.context() as patch, redirect_stderr(err), redirect_stdout(io.StringIO()):
        patch.setenv("GROUNDLING_CACHE", str(folder / "cache"))
        with pytest.raises(SystemExit) as end:
            main(words)
    return int(end.value.code or 0), err.getvalue()


@pytest.fixture(scope="module")
def refusals(folder: Path) -> dict[str, str]:
    """What each refused command says."""
    told = {}
    for command in dict.fromkeys(refused for refused, *_ in WALKED):
        status, told[command] = call(folder, command)
        assert status in (1, 2), command
    return told


@pytest.mark.parametrize(("refused", "advice", "followed", "obstacle"), WALKED, ids=lambda text: text[:60])
def test_advice_can_be_followed(
    refused: str, advice: str, followed: str, obstacle: str, refusals: dict[str, str], folder: Path
) -> None:
    assert advice in refusals[refused]
    status, err = call(folder, followed)
    assert obstacle in err if obstacle else status == 0, err


def sentences() -> Iterator[tuple[str, str]]:
    """Every sentence of the source that names an option, with the file: as a pattern, and as it stands there."""
    known = {name for _, argument in options() for name in argument.names} | {"--debug"}
    for path in sorted(SRC.rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        parts = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
        help = {id(part) for node in ast.walk(tree) if _is_help(node) for part in ast.walk(node)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant | ast.JoinedStr) and id(node) not in parts | help:
                pieces = node.values if isinstance(node, ast.JoinedStr) else [node]
                texts = [p.value if isinstance(p, ast.Constant) and isinstance(p.value, str) else None for p in pieces]
                text = "".join("{}" if each is None else each for each in texts)
                if known.intersection(re.findall("--[a-z][a-z-]+", text)) and " " in text:
                    yield path.name, text


def _is_help(node: ast.AST) -> bool:
    """Whether it is a docstring, or the declaration of a setting."""
    is_text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    return is_text or (isinstance(node, ast.Call) and ast.unparse(node.func) in ("setting", "Parameter"))


def test_every_sentence_that_names_an_option_is_tried(refusals: dict[str, str]) -> None:
    """A new one needs a row in `WALKED`, or a reason in `ELSEWHERE`."""
    told = " ".join(refusals.values())
    found = [(file, text) for file, text in sentences() if file not in NO_REFUSALS]
    assert len(found) > 50
    untried = [
        (file, text)
        for file, text in found
        if not re.search(".*?".join(map(re.escape, " ".join(text.split()).split("{}"))), told)
        and not any(part in text for part in ELSEWHERE)
    ]
    assert not untried
    assert not [part for part in ELSEWHERE if not any(part in text for _, text in found)], "gone from the source"
