"""`groundling serve`: where it listens, which arguments it rejects, and how it stops."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import openai as openai_package
import pytest
from asked import serving

import groundling
from groundling.__main__ import main
from groundling.run.run import Run
from groundling.web import server as server_module
from groundling.web.loaded_model import TEMPLATE, LoadedModel, open_runs
from groundling.web.sockets import bind


def test_beyond_this_machine_it_needs_a_key(trained: list[Run], monkeypatch: pytest.MonkeyPatch) -> None:
    for host in ("0.0.0.0", "::", "192.0.2.1"):
        with pytest.raises(ValueError, match="needs --api-key"):
            groundling.serve(trained[0].folder, host=host)
    bind("0.0.0.0", 0, "key").close()
    for empty in ("", "  "):
        with pytest.raises(ValueError, match="The API key is empty"):
            groundling.serve(trained[0].folder, api_key=empty)
        monkeypatch.setenv("GROUNDLING_API_KEY", empty)
        with pytest.raises(ValueError, match="The API key is empty"):
            groundling.serve(trained[0].folder, host="0.0.0.0")


def test_names_of_this_machine_are_loopback() -> None:
    for host in ("localhost", "127.0.0.1", "127.0.0.2"):
        with bind(host, 0, None) as listener:
            assert listener.getsockname()[1] > 0


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["letters", "--port", "70000"], "--port must be at most 65,535, not 70000."),
        (["letters", "--host", "no.such.host.invalid"], "--host 'no.such.host.invalid' is not an address"),
        (["letters", "--host", ""], "--host '' is not an address"),
        (["letters", "--slots", "0"], "--slots must be at least 1, not 0."),
        (["letters", "letters", "--port", "0"], "Two models have the name 'letters'"),
        (["lettres", "--port", "0"], "No run 'lettres' in {out}, and no run at that path (did you mean 'letters'?)."),
        (["letters", "--allow-host", "https://my.example"], "--allow-host 'https://my.example' is not a host. Give"),
        (["letters", "--api-key", "k", "--allow-host", "fee.de:80"], "--allow-host 'fee.de:80' is not a host."),
        (["letters", "--api-key", "k\nl"], "The API key contains a line break or control character, which no HTTP"),
        (["letters", "--allow-host", "my.example"], "--allow-host needs --api-key or GROUNDLING_API_KEY. Without"),
        ([], "Name a run to serve."),
    ],
)
def test_what_is_wrong_is_said_in_one_sentence(
    trained: list[Run], arguments: list[str], sentence: str, capfd: pytest.CaptureFixture[str]
) -> None:
    out = str(trained[0].folder.parent)
    with pytest.raises(SystemExit) as end:
        main(["serve", *arguments, "--out", out])
    assert end.value.code == 1
    error = capfd.readouterr().err
    assert error.startswith(f"groundling: {sentence.replace('{out}', out)}") and error.count("\n") == 1


def test_a_port_in_use_is_named(trained: list[Run]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(OSError, match="Use another --port"):
        groundling.serve(trained[0].folder, port=taken.getsockname()[1])


def test_hosts_are_allowed_on_the_command_line(trained: list[Run], monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Any] = []
    monkeypatch.setattr(server_module, "make_server", lambda *arguments: made.append(arguments[-1]))
    monkeypatch.setattr(server_module, "run", lambda *_: None)
    out = ["--port", "0", "--api-key", "k", "--out", str(trained[0].folder.parent)]
    for hosts in (("box",), ("*.My.example", "[::2]"), ("*",)):
        with pytest.raises(SystemExit):
            main(["serve", "letters", *out, *(word for host in hosts for word in ("--allow-host", host))])
    assert made == [("box",), ("*.my.example", "::2"), ("*",)]


def test_the_name_of_a_run_cannot_control_the_terminal(
    trained: list[Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(trained[0].folder, tmp_path / "\x1b[2J")
    monkeypatch.setattr(server_module._Server, "run", lambda *_, **__: None)
    groundling.serve(folder, port=0)
    printed = capfd.readouterr().out
    assert printed.startswith("␛[2J: ") and "\x1b" not in printed


def test_checkpoints_have_names_of_their_own(trained: list[Run]) -> None:
    paths = sorted((trained[0].folder / "checkpoints").glob("step-*"))
    served = open_runs([groundling.load(path) for path in paths[-2:]])
    assert [model.name for model in served] == ["letters@step-000030", "letters@step-000060"]
    assert [model.step for model in served] == [30, 60]


def test_a_checkpoint_that_training_deletes_meanwhile_is_no_matter(
    trained: list[Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(Path(shutil.copytree(trained[0].folder, tmp_path / "runs" / "copied")))
    old = run.checkpoints.path(30)
    real = Run.checkpoint.fget
    asked: list[Path] = []

    def checkpoint(self: Run) -> Path:
        if not asked:  # the first checkpoint found is deleted before it is read
            asked.append(old)
            shutil.rmtree(old)
            return old
        return real(self)  # type: ignore[misc]

    monkeypatch.setattr(Run, "checkpoint", property(checkpoint))
    assert open_runs([run])[0].step == 60


def test_a_chat_template_is_followed_and_cannot_reach_out(trained: list[Run], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(trained[1].folder, tmp_path / "runs" / "tuned"))
    (folder / TEMPLATE).write_text(
        "{% if messages[0].role == 'assistant' %}{{ raise_exception('The user begins.') }}{% endif %}"
        "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}[assistant] {% endif %}"
    )
    models = open_runs([Run(folder)])
    messages = [{"role": "user", "content": "{{ 7 * 7 }}"}]
    with serving(models) as server:
        assert server.ask("GET", "/v1/models").json["data"][0]["chat"] is True
        chat = server.post("/v1/chat/completions", {"messages": messages, "max_tokens": 20, "seed": 1}).json
        prompt = "[user] {{ 7 * 7 }}\n[assistant] "
        plain = server.post("/v1/completions", {"prompt": prompt, "max_tokens": 20, "seed": 1}).json
        assert chat["choices"][0]["message"]["content"] == plain["choices"][0]["text"]
        assert chat["usage"] == plain["usage"]
        refused = server.post("/v1/chat/completions", {"messages": [{"role": "assistant", "content": "x"}]})
        assert refused.status == 400 and "The user begins." in refused.error["message"]
        given = server.post("/v1/chat/completions", {"messages": messages, "chat_template": "{{ 1 }}"})
        assert given.status == 400 and given.error["param"] == "chat_template"
    for attack in (
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ cycler.__init__.__globals__ }}",
    ):
        (folder / TEMPLATE).write_text(attack)
        with serving(open_runs([Run(folder)])) as server:
            answer = server.post("/v1/chat/completions", {"messages": messages})
            assert answer.status == 400 and "unsafe" in answer.error["message"]
    (folder / TEMPLATE).write_text("{{ ''.index('x') }}")
    with serving(open_runs([Run(folder)])) as server:
        assert server.post("/v1/chat/completions", {"messages": messages}).status == 400
    for invalid in (b"{% if %}", b"\xff", b"{{ " + b"(" * 10_000):
        (folder / TEMPLATE).write_bytes(invalid)
        with pytest.raises(ValueError, match="is not a valid chat template"):
            open_runs([Run(folder)])


def test_characters_that_a_model_never_saw_can_be_left_out(trained: list[Run]) -> None:
    with serving(open_runs(trained[:1], unknown="skip")) as server:
        assert server.post("/v1/tokenize", {"prompt": "Üa行"}).json["count"] == 1
        assert server.post("/v1/completions", {"prompt": "行"}).status == 200


def test_stopping_tells_streams_that_take_too_long(models: list[LoadedModel], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "GRACE_SECONDS", 0.3)
    with serving(models) as server:
        stream = server.client().completions.create(model="letters", prompt="The ", max_tokens=16_000, stream=True)
        next(iter(stream))
    with pytest.raises(openai_package.APIError, match="The server is stopping"):
        list(stream)


def process(run: Run, *arguments: str) -> tuple[subprocess.Popen[str], str]:
    """A server process, and its URL."""
    command = [sys.executable, "-m", "groundling", "serve", str(run.folder), "--port", "0", *arguments]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=dict(os.environ))
    assert child.stdout is not None
    assert child.stdout.readline().startswith(f"{run.name}: ")
    return child, child.stdout.readline().split()[4]


@pytest.mark.skipif(os.name != "posix", reason="other signals elsewhere")
@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_signal_lets_answers_end_and_the_run_may_be_gone(trained: list[Run], tmp_path: Path, number: int) -> None:
    run = Run(Path(shutil.copytree(trained[0].folder, tmp_path / "runs" / "letters")))
    child, url = process(run)
    try:
        shutil.rmtree(run.folder)
        body = json.dumps({"prompt": "The ", "max_tokens": 300, "stream": True}).encode()
        request = urllib.request.Request(f"{url}/completions", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as answer:
            answer.readline()
            child.send_signal(number)
            rest = answer.read()
        assert rest.endswith(b"data: [DONE]\n\n") and b"length" in rest
        _, errors = child.communicate(timeout=60)
        assert errors == ""
        assert child.returncode == (0 if number == signal.SIGINT else -signal.SIGTERM)
    finally:
        child.kill()
