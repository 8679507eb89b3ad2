"""lm-evaluation-harness, unchanged, against the server: its figures are those of the model and of `groundling eval`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from asked import TINY, Server, serving

import groundling
from groundling.inference.stream import start_ids
from groundling.run.run import Run
from groundling.web.loaded_model import open_runs

pytest.importorskip("lm_eval", reason='lm-evaluation-harness is not installed: pip install "groundling[harness]"')

from lm_eval import simple_evaluate
from lm_eval.api.instance import Instance
from lm_eval.models.openai_completions import LocalCompletionsAPI
from lm_eval.tasks import TaskManager

CONTEXT = TINY["block_size"]
KINDS = ("char", "byte", "bpe")


@pytest.fixture(scope="module")
def runs(trained: list[Run], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    """A run with each tokenizer. The texts of the last two end after a line, so the model ends there."""
    folder = tmp_path_factory.mktemp("harness")
    (folder / "lines").mkdir()
    for i in range(40):
        (folder / "lines" / f"{i}.txt").write_text(f"{'the sea ' * (i % 3)}and the land.\n", encoding="utf-8")
    settings = TINY | {"out": folder / "runs", "vocab_size": 270}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GROUNDLING_CACHE", str(folder / "cache"))
        return {"char": trained[0]} | {
            kind: groundling.train(folder / "lines", name=kind, **settings | {"tokenizer": kind}) for kind in KINDS[1:]
        }


@pytest.fixture(scope="module")
def servers(runs: dict[str, Run]) -> Iterator[dict[str, Server]]:
    with (
        serving(open_runs([runs["char"]])) as char,
        serving(open_runs([runs["byte"]])) as byte,
        serving(open_runs([runs["bpe"]])) as bpe,
    ):
        yield dict(zip(KINDS, (char, byte, bpe), strict=True))


def harness(server: Server, run: Run, **options: Any) -> LocalCompletionsAPI:
    """The harness's own client, as `lm_eval --model local-completions` makes it."""
    return LocalCompletionsAPI(base_url=f"{server.url}/v1/completions", model=run.name, **options)


def asked(kind: str, *arguments: Any) -> Instance:
    return Instance(request_type=kind, doc={}, arguments=arguments, idx=0)


def expected(run: Run, ids: list[int], n_context: int) -> tuple[float, bool]:
    """The log-likelihood of what follows the context, and whether it is greedy: from the model's own softmax."""
    nats = run.model(torch.tensor([ids[:-1]]))[0].detach().log_softmax(-1)[n_context - 1 :]
    targets = torch.tensor(ids[n_context:])
    return float(nats.gather(1, targets[:, None]).sum()), bool((nats.argmax(-1) == targets).all())


@pytest.mark.parametrize("options", [{}, {"batch_size": 3}, {"num_concurrent": 3}], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_log_likelihoods_are_the_models_own(
    runs: dict[str, Run], servers: dict[str, Server], kind: str, options: dict[str, int]
) -> None:
    run = runs[kind]
    lm = harness(servers[kind], run, **options)
    assert lm.tokenizer_backend == "remote"  # found without being told
    pairs = [("and the", " land.\n"), ("", "the sea and the"), ("the sea", " and"), ("and the", " lane")]
    encode = run.tokenizer.encode
    first = start_ids(run.tokenizer, run.record.corpus.documents)
    want = [
        expected(run, (encode(a) or first) + encode(a + b)[len(encode(a)) :], len(encode(a) or first)) for a, b in pairs
    ]
    got = lm.loglikelihood([asked("loglikelihood", *pair) for pair in pairs])
    assert [value for value, _ in got] == pytest.approx([value for value, _ in want], abs=1e-4)
    assert [greedy for _, greedy in got] == [greedy for _, greedy in want]
    if kind != "char":  # the model ends the document here, and that token has its entry too
        ended = servers[kind].post("/v1/completions", {"prompt": "and the land.\n", "temperature": 0}).json
        assert ended["choices"][0]["text"] == "" and ended["choices"][0]["finish_reason"] == "stop"
        assert want[0][1]  # greedy


def evaluated(server: Server, run: Run, folder: Path, **options: Any) -> dict[str, Any]:
    """What `lm_eval` prints for my_text.yaml of docs/server.md."""
    (folder / "my_text.yaml").write_text(TASK.replace("my.txt", str(folder / "my.txt")), encoding="utf-8")
    arguments = {"model": run.name, "base_url": f"{server.url}/v1/completions", **options}
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    result = simple_evaluate("local-completions", arguments, ["my_text"], task_manager=manager, bootstrap_iters=0)
    return {name.partition(",")[0]: value for name, value in result["results"]["my_text"].items()}


TASK = """
task: my_text
dataset_path: text
dataset_kwargs: {data_files: {test: my.txt}, sample_by: document}
output_type: loglikelihood_rolling
test_split: test
doc_to_text: ""
doc_to_target: "{{text[1:]}}"
metric_list: [{metric: bits_per_byte}, {metric: byte_perplexity}]
"""


@pytest.mark.parametrize("sliding", [True, False])
def test_the_harness_prints_what_eval_prints(
    runs: dict[str, Run], servers: dict[str, Server], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sliding: bool
) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    run, text = runs["char"], "\n" + ("The one and the other, and what is between them. " * 4)[: 5 * CONTEXT]
    (tmp_path / "my.txt").write_text(text, encoding="utf-8")
    max_length = 30_000 if sliding else CONTEXT + 2
    printed = evaluated(servers["char"], run, tmp_path, max_length=max_length)
    ours = run.evaluate(tmp_path / "my.txt", sliding=sliding)
    assert ours["bytes"] == len(text) - 1
    assert printed["bits_per_byte"] == pytest.approx(ours["bits_per_byte"], abs=1e-6)


@pytest.mark.parametrize("kind", ["byte", "bpe"])
@pytest.mark.parametrize("sliding", [True, False])
def test_eval_adds_the_end_of_a_document(
    runs: dict[str, Run], servers: dict[str, Server], tmp_path: Path, kind: str, sliding: bool
) -> None:
    run = runs[kind]
    newline = run.tokenizer.encode("\n")
    n = 2 * CONTEXT
    text = run.tokenizer.decode(run.tokenizer.encode("the sea and the land, and a lane. " * 9)[:n])
    assert len(run.tokenizer.encode("\n" + text)) == n + 1
    (tmp_path / "my.txt").write_text("\n" + text, encoding="utf-8")
    lm = harness(servers[kind], run, custom_prefix_token_id=newline[0], max_length=30_000 if sliding else CONTEXT + 2)
    got = lm.loglikelihood_rolling([asked("loglikelihood_rolling", text)])
    losses = run.token_losses(tmp_path / "my.txt", max_tokens=0, sliding=sliding)
    assert losses[-1].token == run.tokenizer.end_of_text_id and len(losses) == n + 1
    assert got == pytest.approx([-sum(each.loss for each in losses[:-1])], abs=1e-3)


@pytest.mark.parametrize("backend", ["remote", "None"])
def test_it_generates_until_a_stop_text(runs: dict[str, Run], servers: dict[str, Server], backend: str) -> None:
    for kind in KINDS:
        run = runs[kind]
        lm = harness(servers[kind], run, tokenizer_backend=backend, max_length=200)
        settings = {"until": ["land"], "max_gen_toks": 12, "do_sample": False, "temperature": 0}
        got = lm.generate_until(
            [asked("generate_until", "and the", settings), asked("generate_until", "the", settings)]
        )
        want = [run.generate(text, max_new_tokens=12, temperature=0, stop="land") for text in ("and the", "the")]
        assert got == [each.removeprefix(text) for each, text in zip(want, ("and the", "the"), strict=True)]


def test_it_sends_the_key(runs: dict[str, Run], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sesame")
    run = runs["byte"]
    with serving(open_runs([run]), key="sesame") as server:
        lm = harness(server, run, auth_token="sesame")
        [(got, _)] = lm.loglikelihood([asked("loglikelihood", "the", " sea")])
    assert got == pytest.approx(expected(run, run.tokenizer.encode("the sea"), 3)[0], abs=1e-4)


def test_a_server_of_two_tokenizers_says_that_it_cannot_be_asked_for_one(server: Server) -> None:
    answer = server.ask("GET", "/tokenizer_info")
    assert answer.status == 400 and "different tokenizers" in answer.error["message"]
    card = server.ask("GET", "/v1/tokenizer_info?model=poems").json
    assert (card["eos_token"], card["model_max_length"], card["vocab_size"]) == ("<|endoftext|>", CONTEXT, 257)
    assert server.post("/tokenize", {"model": "poems", "prompt": "<|endoftext|>"}).json["tokens"] == [256]
    assert server.post("/tokenize", {"model": "poems", "prompt": "<|endoftext|>."}).json["count"] == 14
