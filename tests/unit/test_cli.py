"""The command line's manners: help at once, our errors in a line, bugs with their traceback, Ctrl-C quietly."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import edgellm
from edgellm import cli, prefix
from edgellm.errors import EdgeError, UsageError

HEAVY = ("tvm", "paramiko", "numpy", "rich", "huggingface_hub", "cryptography")


def loaded_after(statement: str) -> set[str]:
    script = f"import sys; {statement}; print('\\n'.join(sys.modules))"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return {name for name in HEAVY if name in result.stdout.split()}


def test_help_teaches_and_imports_nothing_heavy(capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        loaded_after("from edgellm.cli import main; sys.stdout = sys.stderr; main([]); sys.stdout = sys.__stdout__")
        == set()
    )
    assert cli.main([]) == 0
    text = capsys.readouterr().out
    for name in cli.COMMANDS:
        assert f"  {name} " in text
    assert "edgellm deploy --board" in text


def test_the_package_imports_nothing_heavy() -> None:
    assert loaded_after("import edgellm, edgellm.errors, edgellm.cli") == set()


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_has_help_with_an_example(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        cli.main([name, "--help"])
    assert exit_.value.code == 0
    assert f"usage: edgellm {name}" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["deploy", "chat", "run", "bench"])
def test_commands_for_boards_import_no_compiler(name: str) -> None:
    assert "tvm" not in loaded_after(f"import {cli.COMMANDS[name].module}")


def command(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def fail(args: object) -> int:
        raise error

    module = SimpleNamespace(__doc__="A test.", add_arguments=lambda parser: None, main=fail)
    monkeypatch.setitem(sys.modules, "edgellm.test_command", module)
    monkeypatch.setitem(cli.COMMANDS, "test", cli.Command("a test", "edgellm.test_command"))


def test_our_errors_are_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    command(monkeypatch, EdgeError("it failed\nhere; do that"))
    assert cli.main(["test"]) == 1
    assert capsys.readouterr().err == "edgellm: it failed here; do that\n"


def test_the_compilers_errors_are_ours_too(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from crosscompile.errors import ConfigError

    command(monkeypatch, ConfigError("config.json: no"))
    assert cli.main(["test"]) == 1
    assert capsys.readouterr().err == "edgellm: config.json: no\n"


def test_bugs_keep_their_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    command(monkeypatch, KeyError("oops"))
    with pytest.raises(KeyError):
        cli.main(["test"])


def test_ctrl_c_is_quiet(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    command(monkeypatch, KeyboardInterrupt())
    assert cli.main(["test"]) == 130
    assert capsys.readouterr().err.strip() == ""


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run", "--board", "local", "-p", "a\udcffb"], "-p/--prompt: the text is not UTF-8"),
        (["run", "--board", "local", "-p", "a", "--system", "\udcff"], "--system: the text is not UTF-8"),
        (["run", "--board", "local", "-p", "a", "--stop", "\udcff"], "--stop: the text is not UTF-8"),
        (["chat", "--board", "local", "--system", "\udcff"], "--system: the text is not UTF-8"),
    ],
)
def test_text_that_is_not_utf8_is_an_error(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        cli.main(arguments)
    assert said in capsys.readouterr().err


def test_a_system_prompt_that_is_not_utf8_is_an_error() -> None:
    with pytest.raises(UsageError, match="--system-prompt: the text is not UTF-8"):
        prefix.read("\udcff", None)


def test_standard_input_that_is_not_utf8_is_an_error() -> None:
    command = [sys.executable, "-m", "edgellm", "run", "--board", "local", "-p", "-"]
    done = subprocess.run(command, input=b"ab\xffc", capture_output=True, check=False)
    assert done.returncode > 0
    assert done.stderr.splitlines() == [b"edgellm: -p -: standard input is not UTF-8: byte 2"]


def test_an_unknown_command_lists_those_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        cli.main(["deploi"])
    assert exit_.value.code == 2
    assert "there is no command 'deploi'; commands: compile, deploy" in capsys.readouterr().err


def test_a_reader_that_leaves_is_no_error() -> None:
    script = f"{sys.executable} -m edgellm --help | head -n 1; exit ${{PIPESTATUS[0]}}"
    result = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False)
    assert result.stderr == ""


def test_the_public_names() -> None:
    assert edgellm.__all__ == [
        "Board",
        "Bundle",
        "Chat",
        "Deployment",
        "EdgeError",
        "Remote",
        "compile_model",
        "connect",
        "deploy",
        "find_board",
        "find_model",
        "list_boards",
    ]
    for name in edgellm.__all__:
        assert callable(getattr(edgellm, name)), name
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = edgellm.nonsense


def test_no_module_hides_a_public_name() -> None:
    """`import edgellm.deploy` would replace the function `edgellm.deploy`."""
    folder = Path(edgellm.__file__).parent
    assert not {path.stem for path in folder.glob("*.py")} & set(edgellm.__all__)
    importlib.import_module("edgellm.deployment")
    assert callable(edgellm.deploy)
