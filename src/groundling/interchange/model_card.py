"""The model card: what was trained, on what, how well, and the proof that the export computes the same."""

from __future__ import annotations

import json
from typing import Any

from groundling import __version__
from groundling.interchange.parity import ParityReport
from groundling.model.gpt import GPT
from groundling.reporting.console import duration
from groundling.run.run import Run
from groundling.training.state import read_state

_USE = {
    "huggingface": """```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained(".")
tokenizer = AutoTokenizer.from_pretrained(".")
ids = tokenizer(PROMPT, return_tensors="pt", add_special_tokens=False).input_ids
print(tokenizer.decode(model.generate(ids, max_new_tokens=200, do_sample=True, temperature=0.7, top_k=50)[0]))
```""",
    "gguf": """```sh
llama-completion -m model.gguf -p PROMPT -n 200 --temp 0.7 --top-k 50 --top-p 1 --min-p 0 -no-cnv
ollama create NAME -f Modelfile && ollama run NAME
```""",
    "onnx": """```python
import numpy, onnxruntime, tokenizers

session = onnxruntime.InferenceSession("model.onnx")
tokenizer = tokenizers.Tokenizer.from_file("tokenizer.json")
ids = numpy.array([tokenizer.encode(PROMPT, add_special_tokens=False).ids])
logits = session.run(["logits"], {"tokens": ids})[0]  # (batch, time, vocabulary)
```

The graph has no cache of keys and values: each call reads all its tokens.""",
}


def card(
    run: Run, model: GPT, to: str, quantize: str | None, average: dict[str, Any] | None, proof: ParityReport
) -> str:
    """README.md of an export, in Markdown with the fields that model hubs read."""
    library = {"huggingface": "transformers", "gguf": "gguf", "onnx": "onnx"}[to]
    lines = [
        "---", f"library_name: {library}", "pipeline_tag: text-generation", "tags: [groundling]", "---", "",
        f"# {run.name}", "",
        f"A language model of {sum(p.numel() for p in model.parameters()):,} parameters, "
        + f"{_origin(run)} groundling, in the form of {to}{f', weights in {quantize}' if quantize else ''}.", "",
        "## Training", "",
        *_table(_facts(run, average)), "",
        "## Proof", "",
        *[f"- {_in_a_line(sentence)}" for sentence in proof.sentences], "",
        "What it writes greedily there:", "",
        *[f"    {line}" for line in proof.greedy_text.splitlines()], "",
        "## Use", "", _USE[to].replace("PROMPT", json.dumps("Once upon a time")), "",
        f"Its context is {model.config.block_size:,} tokens, and its vocabulary {model.vocab_size:,} tokens "
        f"({run.tokenizer.kind}). It completes text; it was not taught to answer.", "",
    ]  # fmt: skip
    if to == "gguf" and run.tokenizer.end_of_text_id is None:
        lines += [
            "This model never learned how a text ends, and llama.cpp wants a token for it. So the file has one token "
            "more, with weights that always give it a logit far below all others; other logits are as they were.",
            "",
        ]
    settings = {
        name: value for group in ("text", "model", "training") for name, value in run.config.to_dict()[group].items()
    }
    return "\n".join([*lines, "## Settings", "", "```json", json.dumps(settings, indent=1), "```", ""])


def _origin(run: Run) -> str:
    if run.record.imported:
        return "imported into"
    return "trained further with" if run.config.training.init_from else "trained from scratch with"


def _facts(run: Run, average: dict[str, Any] | None) -> list[tuple[str, str]]:
    corpus, state, machine = run.record.corpus, read_state(run.checkpoint), run.record.machine
    imported = run.record.imported
    if imported:
        return [("imported from", imported["name"]), ("architecture", imported["architecture"])]
    facts = [
        ("text", f"{corpus.name}: {corpus.characters:,} characters in {corpus.documents:,} document(s)"),
        ("SHA-256 of the text", corpus.fingerprint),
    ]
    if run.config.training.init_from:
        facts.append(("began with", run.config.training.init_from))
    evaluated = [line for line in run.metrics() if line["event"] == "evaluation" and line["step"] == state.step]
    if average:
        steps = ", ".join(f"{step:,}" for step in average["steps"])
        facts += [
            ("weights", f"the mean of the checkpoints at steps {steps}"),
            ("validation loss", f"{average['validation_loss']:.4f} nats a token"),
            ("validation loss of the best checkpoint", f"{average['best_checkpoint_loss']:.4f} nats a token"),
        ]
    elif evaluated:
        line = evaluated[-1]
        facts.append(("validation loss", f"{line['validation_loss']:.4f} nats a token"))
        if line["bits_per_byte"] is not None:
            facts.append(("bits per byte", f"{line['bits_per_byte']:.4f}"))
        if line["training_loss"] is not None:
            facts.append(("training loss", f"{line['training_loss']:.4f} nats a token"))
    facts += [
        ("steps", f"{state.step:,} of {run.config.training.steps:,}"),
        ("tokens trained on", f"{state.tokens:,}"),
        ("time", duration(state.elapsed)),
        ("machine", f"{machine.device}, {machine.dtype}"),
        ("versions", ", ".join(f"{name} {version}" for name, version in run.record.versions.items())),
        ("exported by", f"groundling {__version__}"),
    ]
    return facts


def _table(rows: list[tuple[str, str]]) -> list[str]:
    return ["| | |", "|---|---|", *(f"| {name} | {_in_a_line(value)} |" for name, value in rows)]


def _in_a_line(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")
