"""A session in the terminal: through pipes, and through a pseudo-terminal where there is one."""

from __future__ import annotations

import io
import os
import select
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress

import pytest

import groundling
from groundling.__main__ import main
from groundling.data.conversations import Message, ToolCall
from groundling.data.tokenizers.chat import ChatTokenizer
from groundling.inference.chat import TurnDecoder
from groundling.inference.stream import PromptTruncated
from tuned import GREETING, TOOLS, WEATHER, tuned

READY = "\x1b[?2004h"  # the line editor asks the terminal to mark what is pasted, as it begins

Chat = Callable[..., tuple[str, str]]


@pytest.fixture(scope="module")
def run(prose: str, tmp_path_factory: pytest.TempPathFactory) -> groundling.Run:
    folder = tmp_path_factory.mktemp("chat")
    (folder / "prose.txt").write_text(prose, encoding="utf-8", newline="")
    return groundling.train(
        folder / "prose.txt", name="first", out=folder, on_event=lambda event: None, preset="nano", n_layer=2, n_head=2,
        n_embd=32, block_size=32, batch_size=8, steps=6, warmup_steps=0, eval_tokens=1024, sample_every=0, device="cpu",
        dtype="float32",
    )  # fmt: skip


@pytest.fixture
def chat(run: groundling.Run, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Chat:
    """A whole session, given its lines: standard output and standard error."""

    def chat(*lines: str, flags: tuple[str, ...] = ()) -> tuple[str, str]:
        capsys.readouterr()
        monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(lines)))
        with pytest.raises(SystemExit) as exit:
            main(["chat", str(run.folder), "--seed", "1", "--max-new-tokens", "30", *flags])
        out, err = capsys.readouterr()
        assert not exit.value.code, err
        return out, err

    return chat


@pytest.mark.filterwarnings("ignore:The prompt has")
def test_it_goes_on_with_the_text_and_says_that_it_was_not_tuned(chat: Chat, run: groundling.Run) -> None:
    out, err = chat("The class", "", "def ", "/quit", "never read")
    assert err.count("not a chat model") == 1
    first = run.generate("The class", max_new_tokens=30, seed=1)
    text = "The class" + first
    second = run.generate(text + "\n" * (not text.endswith("\n")), max_new_tokens=30, seed=2)
    assert out.startswith(first + "\n" + second + "\n")
    assert out == chat("The class", "", "def ")[0]  # the end of the input ends it too


def test_what_is_set_counts_from_the_next_turn_on(chat: Chat, run: groundling.Run) -> None:
    out, err = chat("/temperature 0", "/max-new-tokens 12", "/top-k", "/temperature", "The class")
    expected = run.generate("The class", max_new_tokens=12, temperature=0)
    assert out == f"top-k 50\ntemperature 0.0\n{expected}\n" and err.count("note:") == 1


def test_reset_forgets_and_again_writes_another(chat: Chat, run: groundling.Run) -> None:
    one, other = (run.generate("The class", max_new_tokens=30, seed=seed) for seed in (1, 2))
    assert chat("The class", "/reset", "The class")[0] == f"{one}\n{one}\n"
    assert chat("The class", "/again")[0] == f"{one}\n{other}\n"
    assert chat("The class", "/reset", "/seed 2", "The class")[0] == f"{one}\n{other}\n"


def test_help_tells_all_that_can_be_set(chat: Chat) -> None:
    out, _ = chat("/help")
    for words in ("/reset", "/again", "/quit", "/max-new-tokens 30", "/temperature 0.7", "/top-p 1.0", "/seed 1"):
        assert words in out


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("/nonsense 3", "There is no /nonsense. /help lists"),
        ("/temperature hot", "/temperature takes a number, not 'hot'."),
        ("/temperature -1", "--temperature must be at least 0"),
        ("/max-new-tokens 0", "/max-new-tokens must be at least 1"),
        ("§", "is not among the"),
    ],
)
def test_what_is_wrong_is_told_and_the_session_goes_on(chat: Chat, line: str, sentence: str) -> None:
    expected, _ = chat("The class")
    out, err = chat(line, "The class")
    assert sentence in err and out == expected


def test_a_wrong_flag_is_told_before_the_first_turn(run: groundling.Run, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit:
        main(["chat", str(run.folder), "--max-new-tokens", "-1"])
    assert exit.value.code == 1 and "--max-new-tokens must be" in capsys.readouterr().err


@pytest.mark.skipif(sys.platform == "win32", reason="has no pseudo-terminals")
def test_ctrl_c_stops_the_answer_and_not_the_session(run: groundling.Run) -> None:
    import pty

    child, terminal = pty.fork()
    if child == 0:
        environment = os.environ | {"PROMPT_TOOLKIT_NO_CPR": "1", "TERM": "xterm"}
        command = [sys.executable, "-m", "groundling", "chat", str(run.folder), "--max-new-tokens", "10000000"]
        os.execve(sys.executable, command, environment)
    shown = ""

    def until(holds: Callable[[str], object]) -> None:
        """Read what is shown until it is as awaited; the next call begins behind it."""
        nonlocal shown
        deadline = time.monotonic() + 60
        while not holds(shown):
            assert time.monotonic() < deadline, shown
            if select.select([terminal], [], [], 0.2)[0]:
                with suppress(OSError):  # on Linux, that the other end is closed
                    shown += os.read(terminal, 65536).decode("utf-8", "replace")
        shown = ""

    try:
        until(lambda text: "not a chat model" in text and READY in text)
        os.write(terminal, b"The class\r")
        until(lambda text: len(text) > 400)
        os.write(terminal, b"\x03")
        until(lambda text: READY in text)
        os.write(terminal, b"half a li\x03")  # where nothing is written, Ctrl-C drops the line
        os.write(terminal, b"/top-k\r")
        until(lambda text: READY in text.partition("top-k 50")[2])
        os.write(terminal, b"\x04")  # Ctrl-D
        until(lambda text: os.waitpid(child, os.WNOHANG) == (child, 0))
    except BaseException:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        raise
    finally:
        os.close(terminal)


@pytest.mark.parametrize("is_terminal", [True, False])
def test_a_terminal_obeys_nothing_that_a_model_writes(
    is_terminal: bool, chat: Chat, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hostile run could set the title, fill the clipboard or hide what it says; a file gets what was written."""
    evil = "\x1b]52;c;ZXZpbA==\x07\x1b[8mhidden\x9b0m"
    monkeypatch.setattr(groundling.Run, "stream", lambda *_, **__: iter(evil))
    monkeypatch.setattr(sys.stdout, "isatty", lambda: is_terminal, raising=False)
    out, _ = chat("The class")
    assert (evil in out) != is_terminal
    if is_terminal:
        assert not set("\x1b\x07\x9b") & set(out) and "␛]52;c;ZXZpbA==␇" in out


@pytest.fixture(scope="module")
def tuned_run(tmp_path_factory: pytest.TempPathFactory) -> groundling.Run:
    folder = tmp_path_factory.mktemp("tuned")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GROUNDLING_CACHE", str(folder / "cache"))
        return tuned(folder)


@pytest.fixture
def talk(tuned_run: groundling.Run, chat: Chat, run: groundling.Run, monkeypatch: pytest.MonkeyPatch) -> Chat:
    """The same with a model that was tuned on conversations."""
    monkeypatch.setattr(run, "folder", tuned_run.folder)
    return lambda *lines: chat("/max-new-tokens 80", "/temperature 0", *lines)


def test_a_tuned_model_replies_and_calls_the_calculator(talk: Chat) -> None:
    out, err = talk("Hi", "/reset", "38+47=", "/again", "/reset", "Hi", "/again")
    assert out == "Hello, you.\n" + "[38+47 = 85] It is 85.\n" * 2 + "Hello, you.\n" * 2
    assert "not a chat model" not in err


def test_a_system_message_begins_the_chat(talk: Chat, tuned_run: groundling.Run) -> None:
    out, _ = talk("/system The fox", "Hi", "/system", "Hi")
    messages = [{"role": "system", "content": "The fox"}, *GREETING[:1]]
    assert out == tuned_run.chat(messages, temperature=0, max_new_tokens=80) + "\nHello, you.\n"


def test_old_turns_are_dropped_as_a_whole(talk: Chat) -> None:
    out, err = talk(*["Hi"] * 40)
    assert len(out.splitlines()) == 40
    assert err.count("its oldest turns are dropped") == 1


def test_what_a_tuned_model_cannot_read_is_told_and_forgotten(talk: Chat) -> None:
    out, err = talk("/again", "Hi" * 100, "Ü", "/help", "Hi")
    assert "There is no reply to replace yet." in err
    assert "The chat has 204 tokens without its older turns, and the context of this model is 192. Shorten" in err
    assert "'Ü'" in err and "/system TEXT" in out
    assert out.endswith("Hello, you.\n")


def test_run_chat_replies_to_messages(tuned_run: groundling.Run, run: groundling.Run) -> None:
    say = [Message("user", "38+47=")]
    assert tuned_run.chat(say, temperature=0) == "It is 85."
    weather = tuned_run.chat(WEATHER[:1], tools=TOOLS, temperature=0)
    assert weather == '<tool_call>{"name": "get_weather", "arguments": {"city": "Paris"}}</tool_call>'
    assert tuned_run.chat(WEATHER[:3], tools=TOOLS, temperature=0) == "It is sunny."
    assert tuned_run.chat(GREETING[:1], temperature=0, stop=",") == "Hello"
    with pytest.warns(PromptTruncated, match="its oldest turns are dropped"):
        tuned_run.chat([*GREETING * 20, *GREETING[:1]], temperature=0)
    with pytest.raises(ValueError, match=r"messages\[0\]\.role to be system"):
        tuned_run.chat([{"role": "narrator", "content": "x"}])
    with pytest.raises(ValueError, match="messages is empty"):
        tuned_run.chat([])
    with pytest.raises(ValueError, match=r"first has no chat template.*`groundling sft .*first chats\.jsonl`"):
        run.chat(say)
    assert tuned_run.generate("Hi", temperature=0, max_new_tokens=3)  # a text, not a chat


def test_turns_are_decoded_token_by_token(tuned_run: groundling.Run) -> None:
    tokenizer = tuned_run.tokenizer
    assert isinstance(tokenizer, ChatTokenizer)
    call = ToolCall("calculator", '{"expression": "38+47"}')

    def pieces(message: Message, *stop: str) -> tuple[list[str], TurnDecoder]:
        start = len(tokenizer.render([], add_generation_prompt=True).ids)
        decoder = TurnDecoder(tokenizer, stop)
        return [decoder.push(id) for id in tokenizer.render([message]).ids[start:]] + [decoder.finish()], decoder

    told, turn = pieces(Message("assistant", "It is", (call, call)))
    assert "".join(told) == turn.content == "It is" and turn.calls == (call, call)
    assert told[:5] == list("It is") and not any(told[5:])  # nothing of the calls
    told, turn = pieces(Message("assistant", "It is", (call,)), "s")
    assert ("".join(told), turn.calls, turn.stopped) == ("It i", (), True)
    told, turn = pieces(Message("assistant", "It", (call,)), "its")
    assert ("".join(told), turn.calls) == ("It", (call,))  # what may begin a stop text is released
