"""The model card: what was trained, on what, how good it is, and the report that the export computes the same."""

from __future__ import annotations

import json
from typing import Any

from groundling import __version__
from groundling.data.conversations import Message
from groundling.data.tokenizers.chat import ChatTokenizer
from groundling.escape import quoted
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
output = model.generate(ids, max_new_tokens=TOKENS, do_sample=True, temperature=0.7, top_k=50)
print(tokenizer.decode(output[0]))
```""",
    "gguf": """With llama.cpp:

```sh
llama-completion -m model.gguf -c CONTEXT -p PROMPT -n TOKENS --temp 0.7 --top-k 50 --top-p 1 --min-p 0 -no-cnv
```

With Ollama:

```sh
ollama create my-model -f Modelfile
ollama run my-model PROMPT
```""",
    "onnx": """```python
import numpy as np
import onnxruntime
import tokenizers

session = onnxruntime.InferenceSession("model.onnx")
tokenizer = tokenizers.Tokenizer.from_file("tokenizer.json")
ids = np.array([tokenizer.encode(PROMPT, add_special_tokens=False).ids], dtype=np.int64)
logits = session.run(["logits"], {"tokens": ids})[0]  # (batch, time, vocabulary)
```

The graph has no KV cache: each call reads all its tokens again.""",
    "peft": """The adapter belongs to the model in the folder `base`.

```python
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("base"), ".")
tokenizer = AutoTokenizer.from_pretrained("base")
ids = tokenizer(PROMPT, return_tensors="pt", add_special_tokens=False).input_ids
output = model.generate(input_ids=ids, max_new_tokens=TOKENS, do_sample=True, temperature=0.7, top_k=50)
print(tokenizer.decode(output[0]))
```""",
}

_CHAT = {
    "huggingface": """```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained(".")
tokenizer = AutoTokenizer.from_pretrained(".")
messages = [{"role": "user", "content": PROMPT}]
inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
output = model.generate(**inputs, max_new_tokens=TOKENS, do_sample=True, temperature=0.7, top_k=50)
print(tokenizer.decode(output[0, inputs["input_ids"].shape[1]:], skip_special_tokens=True))
```""",
    "gguf": """```sh
llama-cli -m model.gguf -c CONTEXT -n TOKENS --temp 0.7 --top-k 50 --top-p 1 --min-p 0 --jinja -cnv
```""",
}

_SKILLS = {
    True: "The model replies to messages, by its chat template.",
    False: "The model completes text. It is not trained to answer questions.",
}
UNPROVED = (
    "PEFT is not installed, so this export was not compared with groundling. To compare the next one, install it: "
    'pip install "groundling[peft]".'
)


def card(
    run: Run, model: GPT, to: str, quantize: str | None, average: dict[str, Any] | None, report: ParityReport | None
) -> str:
    """README.md of an export, in Markdown with the metadata that model hubs read."""
    library = "transformers" if to == "huggingface" else to
    chats = isinstance(run.tokenizer, ChatTokenizer)
    kind = run.tokenizer.base.kind if isinstance(run.tokenizer, ChatTokenizer) else run.tokenizer.kind
    lines = [
        "---", f"library_name: {library}", "pipeline_tag: text-generation", "tags: [groundling]", "---", "",
        f"# {run.name}", "",
        f"A language model with {sum(p.numel() for p in model.parameters()):,} parameters, {_origin(run)} groundling. "
        f"Format: {to}{f', quantized to {quantize}' if quantize else ''}.", "",
        "## Training", "",
        "| | |", "|---|---|", *(f"| {name} | {_one_line(value)} |" for name, value in _facts(run, average)), "",
        *_path(run),
        "## Parity check", "",
        *_compared(report),
        "## Use", "", "Run this in the folder of this file.", "", _use(run, model, to), "",
        f"The context is {model.config.block_size:,} tokens, and the vocabulary {model.vocab_size:,} tokens "
        f"({kind}). {_SKILLS[chats]}", "",
    ]  # fmt: skip
    if to == "gguf" and not run.tokenizer.end_ids:
        lines += [
            "This model never learned how a text ends, but llama.cpp requires an end-of-text token. The file has one "
            "extra token for this. Its logit is always far below all others, and the other logits are unchanged.",
            "",
        ]
    groups = run.config.to_dict()
    settings = groups["text"] | groups["model"] | groups["training"]
    return "\n".join([*lines, "## Settings", "", "```json", json.dumps(settings, indent=1), "```", ""])


def _compared(report: ParityReport | None) -> list[str]:
    if report is None:
        return [UNPROVED, ""]
    return [
        "Before it was published, this export was compared with groundling:", "",
        *[f"- {_one_line(sentence)}" for sentence in report.sentences], "",
        f"Greedy continuation of {report.source}:", "",
        *[f"    {line}" for line in report.greedy_text.splitlines()], "",
    ]  # fmt: skip


def _use(run: Run, model: GPT, to: str) -> str:
    """The example, with a prompt that the tokenizer knows, and no more tokens than fit into the context."""
    context = model.config.block_size
    prompt = run.example_prompt(max(1, context // 2))
    room = max(1, min(200, context - len(run.tokenizer.encode(prompt))))
    shown = quoted(prompt, windows=False) if to == "gguf" else json.dumps(prompt, ensure_ascii=False)
    use = _USE[to].replace("TOKENS", f"{room}")
    if isinstance(run.tokenizer, ChatTokenizer) and to in _CHAT:
        n = len(run.tokenizer.render([Message("user", prompt)], add_generation_prompt=True).ids)
        chat = _CHAT[to].replace("TOKENS", f"{max(1, min(200, context - n))}")
        use = f"To chat:\n\n{chat}\n\nTo complete a text:\n\n{use}"
    return use.replace("CONTEXT", f"{context}").replace("PROMPT", shown)


def _path(run: Run) -> list[str]:
    """The runs that it descends from."""
    record = run.record
    if not record.lineage:
        return []
    stages = [
        f"{i}. {stage.task}: run {_one_line(stage.run)}, on {_one_line(stage.corpus)}, up to step {stage.step:,}. "
        f"SHA-256 of its weights: {stage.weights}"
        for i, stage in enumerate(record.lineage, 1)
    ]
    used = "".join(f", with the {role} {_one_line(model.run)}" for role, model in record.others.items())
    last = f"{len(stages) + 1}. {run.config.task}: this run, on {_one_line(record.corpus.name)}{used}"
    return ["## How it was made", "", *stages, last, ""]


def _origin(run: Run) -> str:
    if run.record.imported:
        return "imported into"
    return "trained further with" if run.config.training.init_from else "trained from scratch with"


def _facts(run: Run, average: dict[str, Any] | None) -> list[tuple[str, str]]:
    if imported := run.record.imported:
        return [("imported from", imported["name"]), ("architecture", imported["architecture"])]
    corpus, state, machine = run.record.corpus, read_state(run.checkpoint), run.record.machine
    facts = [
        ("text", f"{corpus.name}: {corpus.characters:,} characters in {corpus.documents:,} document(s)"),
        ("SHA-256 of the text", corpus.fingerprint),
    ]
    if run.config.training.init_from:
        facts.append(("initialized from", run.config.training.init_from))
    evaluated = [line for line in run.metrics() if line["event"] == "evaluation" and line["step"] == state.step]
    if average:
        steps = ", ".join(f"{step:,}" for step in average["steps"])
        facts += [
            ("weights", f"average of the checkpoints at steps {steps}"),
            ("validation loss", f"{average['validation_loss']:.4f} nats per token"),
            ("validation loss of the best checkpoint", f"{average['best_checkpoint_loss']:.4f} nats per token"),
        ]
    elif evaluated:
        units = {"validation_loss": " nats per token", "bits_per_byte": "", "training_loss": " nats per token"}
        last = evaluated[-1]
        facts += [(n.replace("_", " "), f"{last[n]:.4f}{u}") for n, u in units.items() if last[n] is not None]
    facts += [
        ("steps", f"{state.step:,} of {run.config.training.steps:,}"),
        ("tokens trained on", f"{state.tokens:,}"),
        ("training time", duration(state.elapsed)),
        ("machine", f"{machine.device}, {machine.dtype}"),
        ("versions", ", ".join(f"{name} {version}" for name, version in run.record.versions.items())),
        ("exported by", f"groundling {__version__}"),
    ]
    return facts


def _one_line(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")
