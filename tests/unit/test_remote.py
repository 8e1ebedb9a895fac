"""Addresses, this machine as a board, what a board says about itself, and what is shown of it."""

from __future__ import annotations

import argparse
import json
import socket
from pathlib import Path

import pytest

from edgellm.address import SshAddress, parse_address
from edgellm.boards import load_board
from edgellm.connection import address_of, connect, model_name
from edgellm.conversation import Chat
from edgellm.errors import (
    BoardError,
    CommandError,
    LinkError,
    RemoteError,
    RuntimeFailedError,
    UnsuitableError,
    UsageError,
)
from edgellm.fake import FakeRemote
from edgellm.local_remote import LocalRemote
from edgellm.probe import probe
from edgellm.remembered import Remembered, recall, remember, state_path
from edgellm.remote import FileToSend
from edgellm.runtime_program import failure, find_model
from edgellm.selection import add_sampling, sampling_argv
from edgellm.terminal import one_line, printable, size
from tests.standin import ARCH, make_bundle, put_in_place


@pytest.fixture(autouse=True)
def own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("board", SshAddress("board")),
        ("pi@board", SshAddress("board", user="pi")),
        ("pi@board:2222", SshAddress("board", 2222, "pi")),
        ("fe80::1", SshAddress("fe80::1")),
        ("pi@[fe80::1]:22", SshAddress("fe80::1", 22, "pi")),
        ("[fe80::1]", SshAddress("fe80::1")),
    ],
)
def test_addresses(text: str, address: SshAddress) -> None:
    assert parse_address(text) == address


@pytest.mark.parametrize(
    "text", ["", "@board", "pi@", "board:", "board:ssh", "board:0", "board:65536", "-oX=y", "[::1", "[::1]x"]
)
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(UsageError, match="user@host"):
        parse_address(text)


def test_text_from_a_board_cannot_command_the_terminal() -> None:
    assert printable("a\x1b[31mb\x07\x9b2J\r\n\tc\u202edef\ud83d ä😀") == "a[31mb2J\n\tcdef\ufffd ä😀"
    assert one_line("  two\nlines " + "x" * 1000, 20) == "two lines xxxxxxxxx…"
    assert [size(n) for n in (12, 1500, 8_400_000, 3_200_000_000)] == ["12 bytes", "1.5 kB", "8.4 MB", "3.2 GB"]


def test_local_is_this_machine() -> None:
    with connect(load_board("local")) as remote:
        facts = probe(remote)
        assert isinstance(remote, LocalRemote)
        assert facts.arch == ARCH
        assert facts.home == str(Path.home())
        assert facts.memory_bytes > facts.memory_available_bytes > 0


def test_a_command_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(RemoteError, match="cannot start no-such-program"):
        LocalRemote().run(["no-such-program"])


def test_a_silent_command_is_given_up() -> None:
    with pytest.raises(LinkError, match="no answer for 0 s"):
        LocalRemote().run(["sleep", "30"], silence_s=0.1)


def test_a_stream_of_many_files(tmp_path: Path) -> None:
    board = FakeRemote(tmp_path)
    content = {"a": b"", "b c": b"x" * 511, "deep/d": b"y" * 512, "e'": b"z" * 300_000, "n" * 120: b"long"}
    (tmp_path / "from").mkdir()
    (tmp_path / "to/deep").mkdir(parents=True)
    files = []
    for number, (name, data) in enumerate(content.items()):
        (tmp_path / "from" / str(number)).write_bytes(data)
        files.append(FileToSend(tmp_path / "from" / str(number), name, name == "a"))
    sent: list[int] = []
    board.put_all(files, str(tmp_path / "to"), progress=sent.append)
    assert {name: (tmp_path / "to" / name).read_bytes() for name in content} == content
    assert sum(sent) == sum(map(len, content.values()))
    assert (tmp_path / "to/a").stat().st_mode & 0o111
    assert not (tmp_path / "to/b c").stat().st_mode & 0o111


def test_where_a_board_is() -> None:
    board = load_board("rpi5")
    with pytest.raises(UsageError, match="Add --host"):
        address_of(board)
    remember("rpi5", Remembered("pi@[fe80::7]:2222", "m"))
    assert address_of(board) == SshAddress("fe80::7", 2222, "pi")
    remember("other", Remembered(None, "n"))
    assert (recall("rpi5").model, recall("other"), recall("none")) == ("m", Remembered(None, "n"), Remembered())
    state_path().write_text("{broken")
    assert recall("rpi5") == Remembered()


def test_names_on_a_board() -> None:
    assert model_name("Org/My Model:7b") == "My-Model-7b"
    assert model_name("../../etc") == "etc"
    assert len(model_name("x" * 500)) == 64
    with pytest.raises(UsageError):
        model_name("..")


def test_which_model(tmp_path: Path) -> None:
    board = FakeRemote(tmp_path)
    with pytest.raises(BoardError, match="has no model yet"):
        find_model(board, None)
    bundle = make_bundle(tmp_path / "b", deployable=False)
    put_in_place(tmp_path, bundle, "one")
    assert find_model(board, None).name == "one"
    put_in_place(tmp_path, bundle, "two")
    with pytest.raises(BoardError, match="several models; add --model and one of: one, two"):
        find_model(board, None)
    assert find_model(board, None, preferred="two").name == "two"
    assert find_model(board, None, preferred="two").path == f"{tmp_path}/.edgellm/models/two/current"
    with pytest.raises(BoardError, match="no model called three; it has: one, two"):
        find_model(board, "three")


def test_failures_of_the_runtime_keep_their_names(tmp_path: Path) -> None:
    board = FakeRemote(tmp_path)
    error = failure(board, "verify", 21, "noise\nedgellm-rt: BUNDLE_CORRUPT: plan.json \x1b[1mis bad\n")
    assert isinstance(error, RuntimeFailedError)
    assert (error.name, error.status, str(error)) == (
        "BUNDLE_CORRUPT",
        21,
        "fake: verify: plan.json [1mis bad (BUNDLE_CORRUPT)",
    )
    assert isinstance(failure(board, "x", 127, "sh: not found"), UnsuitableError)
    assert "out of memory" in str(failure(board, "x", 137, "Killed"))


class TestChat:
    @pytest.fixture
    def board(self, tmp_path: Path) -> FakeRemote:
        put_in_place(tmp_path, make_bundle(tmp_path / "b", deployable=False))
        return FakeRemote(tmp_path)

    def test_answers_stream_and_end_with_statistics(self, board: FakeRemote) -> None:
        with Chat(find_model(board, None)) as chat:
            assert list(chat.ask("hello")) == ["You said: ", "hello[2J"]
            assert chat.answer.done is not None
            assert chat.answer.done.reason == "stop"
            assert chat.answer.done.decode_tok_s == 500
            assert "".join(chat.ask("again")) == "You said: again[2J"

    def test_an_answer_can_be_cancelled(self, board: FakeRemote) -> None:
        with Chat(find_model(board, None)) as chat:
            heard: list[str] = []
            for piece in chat.ask("long", cancelled=lambda: len(heard) > 2):
                heard.append(piece)
            assert chat.answer.done is not None
            assert chat.answer.done.reason == "cancelled"

    def test_nonsense_is_an_error(self, board: FakeRemote) -> None:
        with Chat(find_model(board, None)) as chat, pytest.raises(CommandError, match=r"unexpected: .*not JSON"):
            list(chat.ask("rubbish"))

    def scripted(self, board: FakeRemote, *lines: str) -> Chat:
        """A chat with a program that says these lines, whatever it is told."""
        program = board.home / ".edgellm/models/tiny/current/edgellm-rt"
        program.unlink()
        program.write_text("#!/bin/sh\n" + "\n".join(f"echo '{line}'" for line in lines) + "\nread line; exit 27\n")
        program.chmod(0o755)
        return Chat(find_model(board, None))

    READY = '{"type":"ready"}'

    @pytest.mark.parametrize(
        "line",
        [
            "[1]",
            '{"type":7}',
            '{"type":"text"}',
            '{"type":"text","text":5}',
            '{"type":"done"}',
            '{"type":"done","reason":"stop","tokens":"many"}',
            '{"type":"done","reason":"stop","tokens":-1}',
            "[" * 5000,
        ],
    )
    def test_malformed_messages_are_errors(self, board: FakeRemote, line: str) -> None:
        with self.scripted(board, self.READY, line) as chat, pytest.raises(CommandError, match="something unexpected"):
            list(chat.ask("x"))

    def test_an_endless_line_is_cut_off(self, board: FakeRemote) -> None:
        with self.scripted(board, self.READY) as chat:
            chat._buffer += b"x" * (1 << 21)
            with pytest.raises(CommandError, match="a line without an end"):
                list(chat.ask("x"))

    def test_a_program_that_ends_says_why(self, board: FakeRemote) -> None:
        with self.scripted(board, self.READY) as chat, pytest.raises(CommandError, match="status 27"):
            list(chat.ask("x"))

    def test_an_error_message_ends_only_the_answer(self, board: FakeRemote) -> None:
        error = json.dumps({"type": "error", "name": "CONTEXT_FULL", "text": "too long"})
        said = pytest.raises(RuntimeFailedError, match=r"too long \(CONTEXT_FULL\)")
        with self.scripted(board, self.READY, error) as chat, said:
            list(chat.ask("x"))


def test_sampling_options_reach_the_runtime_and_are_checked() -> None:
    parser = argparse.ArgumentParser(exit_on_error=False)
    add_sampling(parser)
    args = parser.parse_args("-n 5 --temperature 0.5 --top-k 3 --min-p 0.1 --stop a --stop b".split())
    assert sampling_argv(args) == "-n 5 --temperature 0.5 --top-k 3 --min-p 0.1 --stop a --stop b".split()
    assert sampling_argv(parser.parse_args([])) == []
    for wrong in ("--temperature=-1", "--temperature=nan", "--top-p=1.5", "-n 0", "--seed=x"):
        with pytest.raises(argparse.ArgumentError):
            parser.parse_args(wrong.split())


def test_a_form_is_read_here_and_sent_as_text(tmp_path):
    parser = argparse.ArgumentParser()
    add_sampling(parser)
    schema, grammar = tmp_path / "schema.json", tmp_path / "grammar"
    schema.write_text('{"type": "integer"}\n')
    grammar.write_text('root ::= "yes"\n')
    given = parser.parse_args(["--json-schema", str(schema)])
    assert sampling_argv(given) == ["--json-schema", '{"type": "integer"}']
    assert sampling_argv(parser.parse_args(["--grammar", str(grammar)])) == ["--grammar", 'root ::= "yes"']
    for option, path, said in (
        ("--json-schema", grammar, "a JSON object"),
        ("--grammar", schema, "has rules"),
        ("--grammar", tmp_path / "nowhere", "No such file"),
    ):
        with pytest.raises(UsageError, match=said):
            sampling_argv(parser.parse_args([option, str(path)]))


def test_a_tunnel_may_be_silent() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        tunnel = LocalRemote().tunnel(listener.getsockname()[1])
        assert isinstance(tunnel, socket.socket)
        with tunnel:
            assert tunnel.gettimeout() is None
