"""`edgellm chat` as a person uses it: in a terminal, with the demo model deployed to this machine."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from edgellm.conversation import Chat
from edgellm.errors import RuntimeFailedError
from edgellm.local_remote import LocalRemote
from edgellm.runtime_program import InstalledModel
from tests.server import MODEL, SYSTEM
from tests.terminal import Terminal

CHAT = [sys.executable, "-m", "edgellm", "chat", "--board", "local", "--temperature", "0"]
LOCKED = "The front door is locked."


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a person to whose machine the model was deployed."""
    folder = tmp_path_factory.mktemp("home")
    variables = {"HOME": folder, "XDG_STATE_HOME": folder / "state", "XDG_CONFIG_HOME": folder / "config"}
    env = {**os.environ, **{name: str(value) for name, value in variables.items()}}
    env.setdefault("EDGELLM_CACHE", str(Path.home() / ".cache/edgellm"))
    subprocess.run(
        [sys.executable, "-m", "edgellm", "deploy", "--board", "local", str(MODEL)],
        env=env,
        check=True,
        capture_output=True,
    )
    return env


@pytest.fixture
def terminal(home: dict[str, str]) -> Iterator[Terminal]:
    with Terminal([*CHAT, "--system", SYSTEM], home) as terminal:
        terminal.until("(/help for help)")
        terminal.until("\n>")
        yield terminal


def board_program(terminal: Terminal) -> psutil.Process:
    """The edgellm-rt that this chat talks to."""
    (found,) = [child for child in psutil.Process(terminal.child.pid).children() if child.name() == "edgellm-rt"]
    return found


def wait_until_handled(pid: int, number: int) -> None:
    """Returns once a signal that was sent is no longer pending, and its handler had the time to run."""
    process = psutil.Process(pid)
    while True:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        pending = sum(int(line.split()[1], 16) for line in lines if line.startswith(("SigPnd", "ShdPnd")))
        if not pending >> (number - 1) & 1:
            break
    before = process.num_ctx_switches().voluntary
    while process.num_ctx_switches().voluntary < before + 3:  # Python runs handlers before it waits again
        time.sleep(0.01)


def test_a_conversation_with_its_commands(terminal: Terminal, home: dict[str, str], tmp_path: Path) -> None:
    file = tmp_path / "kept.json"
    terminal.type("is the front door locked\r")
    terminal.until("tok/s")
    assert f"> is the front door locked\n{LOCKED}\n" in terminal.seen()
    terminal.type("turn on the\\\rkitchen light\r")  # two lines
    terminal.until("tok/s", 2)
    terminal.type(f"/save {file}\r")
    terminal.until("2 turns in")
    saved = json.loads(file.read_text())
    assert saved["system"] == SYSTEM
    assert [message["content"] for message in saved["messages"][:3]] == [
        "is the front door locked", LOCKED, "turn on the\nkitchen light",
    ]  # fmt: skip
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    terminal.type("/retry\r")
    terminal.until("tok/s", 3)
    terminal.type("/stats\r")
    seen = terminal.until("throttling ")
    assert "answers      3, " in seen
    assert " of 1024 positions" in seen
    terminal.type("/system You are a pirate.\r")
    terminal.until("from now on")
    terminal.type("/system\r")
    terminal.until("\nYou are a pirate.")
    terminal.type("/reset\r")
    terminal.until("forgotten")
    terminal.type("/retry\r")
    terminal.until("nothing was asked yet")
    terminal.type(f"/load {file}\r")
    terminal.until("2 turns taken up")
    terminal.type("/save\r")
    terminal.until("conversation.json")
    terminal.type("/nonsense\r")
    terminal.until("there is no /nonsense")
    terminal.type("/quit\r")
    assert terminal.end() == 0
    (Path.cwd() / "conversation.json").unlink()
    history = Path(home["XDG_STATE_HOME"]) / "edgellm" / "chat_history"
    assert stat.S_IMODE(history.stat().st_mode) == 0o600


def test_a_loaded_conversation_goes_on(home: dict[str, str], tmp_path: Path) -> None:
    file = tmp_path / "kept.json"
    messages = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "Hello."}]
    document = {"format": "edgellm-conversation", "version": 1, "model": "other", "system": SYSTEM}
    file.write_text(json.dumps({**document, "messages": messages}))
    with Terminal([*CHAT, "--load", str(file)], home) as terminal:
        terminal.until("1 turn taken up, answered by other")
        terminal.type("is the front door locked\r")
        terminal.until(LOCKED)  # it knows the system prompt of the file
        terminal.type("/load /nowhere/at/all\r")
        terminal.until("/nowhere/at/all cannot be read: No such file or directory")
        terminal.type("\x1b[A\x1b[A\r")  # arrow up, twice: said before
        terminal.until(LOCKED, 2)
        terminal.type("\x04")  # Ctrl-D
        assert terminal.end() == 0


def test_ctrl_c_stops_the_answer_and_not_the_program(terminal: Terminal) -> None:
    board = board_program(terminal)
    board.suspend()  # a board that takes its time
    terminal.type("is the front door locked\r")
    terminal.until("…")
    terminal.child.kill(signal.SIGINT)
    wait_until_handled(terminal.child.pid, signal.SIGINT)  # else the board may have answered before it is told to stop
    board.resume()
    terminal.until("; stopped")
    terminal.type("is the front door locked\r")
    terminal.until(LOCKED)
    terminal.type("half a line\x03")  # clears what was typed
    terminal.type("first\x1b\rsecond\r")  # Alt-Enter begins a new line
    terminal.until("> first\n  second")
    terminal.type("/quit\r")
    assert terminal.end() == 0


def test_ctrl_c_twice_leaves_a_board_that_is_stuck(terminal: Terminal) -> None:
    board = board_program(terminal)
    board.suspend()
    terminal.type("is the front door locked\r")
    terminal.until("…")
    terminal.child.kill(signal.SIGINT)
    wait_until_handled(terminal.child.pid, signal.SIGINT)  # two that are pending count as one
    terminal.child.kill(signal.SIGINT)
    assert terminal.end() == 130
    assert not board.is_running()


def test_a_full_context_is_explained(home: dict[str, str]) -> None:
    with Terminal([*CHAT[:-1], "5", "--context", "160"], home) as terminal:
        for _ in range(20):
            terminal.type("tell me everything about the lights\r")
            terminal.until("tok/s", terminal.seen().count("tok/s") + 1)
            if "context is full" in terminal.seen():
                break
        terminal.until("The model sees 160 positions")
        terminal.type("/quit\r")
        assert terminal.end() == 0


def test_without_a_terminal_it_is_plain_text(home: dict[str, str]) -> None:
    argv = [*CHAT, "--system", SYSTEM]
    text = "is the front door locked\n/reset\nis the front door locked\n"
    done = subprocess.run(argv, input=text, env=home, capture_output=True, text=True, check=True)
    assert done.stdout == f"{LOCKED}\n{LOCKED}\n"
    assert done.stderr == "forgotten\n"
    failed = subprocess.run(argv, input="/load x\n", env=home, capture_output=True, text=True, check=False)
    assert failed.returncode == 1
    assert failed.stderr == "edgellm: x cannot be read: No such file or directory\n"


def test_the_board_refuses_what_is_no_conversation(home: dict[str, str]) -> None:
    slot = Path(home["HOME"], ".edgellm", "models", "voice_assistant", "current")
    with Chat(InstalledModel(LocalRemote(), "voice_assistant", str(slot)), SYSTEM, ["--temperature", "0"]) as chat:
        before = "".join(chat.ask("is the front door locked"))
        user, assistant = ({"role": role, "content": "x"} for role in ("user", "assistant"))
        for wrong in ([user], [assistant, user], [user, user], [user, {"role": "assistant", "content": ""}]):
            with pytest.raises(RuntimeFailedError, match="a history is"):
                chat.set_history(None, wrong)
        assert len(chat.messages) == 2
        chat.set_history(SYSTEM, [])
        assert "".join(chat.ask("is the front door locked")) == before == LOCKED


# ---- markdown ----

MARKDOWN = (
    """\
# Title

Some **bold** text, `code` and <tool_call> kept.
A second line.

1. one

2. two
   - inner

```python
"""
    + "".join(f"line_{i} = {i}\n\n" for i in range(40))
    + """\
```

| a | b |
|---|---|
| 1 | 2 |

The [end](https://example.com).
"""
)

SHOW = """
import json, sys
from rich.console import Console
from edgellm.chat_screen import show
text = open(sys.argv[1]).read()
show(Console(highlight=False), (text[i:i + 3] for i in range(0, len(text), 3)))
print("ready", flush=True)
"""


def test_markdown_is_shown_once_and_whole_while_it_streams(tmp_path: Path) -> None:
    file = tmp_path / "text.md"
    file.write_text(MARKDOWN)
    with Terminal([sys.executable, "-c", SHOW, str(file)], dict(os.environ), rows=20, columns=70) as terminal:
        seen = terminal.until("ready")
    for i in range(40):  # taller than the screen, and yet each line stands there once
        assert seen.count(f"line_{i} =") == 1
    assert seen.count("Title") == seen.count("A second line.") == seen.count("inner") == 1
    assert "Some bold text, code and <tool_call> kept." in seen
    assert "**" not in seen
    assert "```" not in seen
    assert " 2 two" in seen
    assert "https://example.com" in seen
    assert "…" not in seen
