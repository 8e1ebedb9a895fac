"""The RPC agent on a board behind a real SSH connection, and a search there that survives the board going away."""

from __future__ import annotations

import json
import socket
import struct
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from edgellm import hub
from edgellm.boards import Board, find_board, load_board
from edgellm.connection import connect
from edgellm.precision import Options
from edgellm.remote import Remote
from edgellm.rpc import Agent, serve
from edgellm.ssh import SshRemote
from edgellm.tune import Journal, Search, Step
from edgellm.tune_builder import Builder
from tests.agent import MAGIC, RETURN, Client, c_library, call, receive


@pytest.fixture(scope="module")
def builder() -> Iterator[Builder]:
    """The smallest model's kernels for this machine, with few schedules: what is tested is the way there."""
    with small_builder(load_board("local")) as made:
        yield made


def small_builder(board: Board) -> Builder:
    path, _ = hub.resolve("random:tiny", lambda stage, done, total: None)
    target = board.target()
    made = Builder(path, Options("w4a8"), target, [1])
    made.layers = tuple(replace(layer, candidates=layer.candidates[:3]) for layer in made.layers[:2])
    return made


def connect_by_hand(agent: Agent, key: str) -> Client:
    """A client in this process: TVM's own must not share one with the forwarding (edgellm/rpc.py)."""
    connection = socket.create_connection(("127.0.0.1", agent.port), timeout=60)
    text = f"client:{key}".encode()
    connection.sendall(struct.pack("<ii", MAGIC, len(text)) + text)
    try:
        magic, n = struct.unpack("<ii", receive(connection, 8))
        assert magic == MAGIC
        receive(connection, n)
    except EOFError:
        connection.close()
        raise
    return Client(connection)


def test_uploaded_code_runs_on_the_board(ssh_server, tmp_path):
    library = c_library(tmp_path / "k.so", "FUNCTION(main) { result->type = 1; result->v.i = 42; return 0; }")
    with SshRemote(ssh_server.address, "test") as remote, serve(load_board("local"), remote) as agent:
        client = connect_by_hand(agent, agent.key)
        assert client.ask(call(client.load(library))) == (RETURN, struct.pack("<iiqiq", 2, 1, 1, 1, 42))
        assert json.loads(client.text(client.function("edgellm.agent_info")))["agent"] == "edgellm-rt"
        assert json.loads(client.text(client.function("edgellm.board_state")))["wall_ns"] > 0
        with pytest.raises(EOFError):  # four bytes that refuse, and the end
            connect_by_hand(agent, "x" * 32)
        client.close()
    assert not list((ssh_server.home / ".edgellm" / "agents").glob("*/edgellm-rpc-*"))


def test_a_search_survives_the_board_going_away(ssh_server, tmp_path, builder):
    steps: list[Step] = []
    links: list[Remote] = []

    def connect_again() -> Remote:
        links.append(SshRemote(ssh_server.address, "test"))
        return links[-1]

    def report(step: Step) -> None:
        steps.append(step)
        if len(steps) == 5:
            ssh_server.kill_sessions()

    search = Search(load_board("local"), connect_again, builder, Journal(tmp_path / "journal"), report=report)
    outcomes = list(search.run())
    assert len(links) == 2
    assert {outcome.layer.key for outcome in outcomes} == {layer.key for layer in builder.layers}
    assert all(0 < outcome.best_us <= outcome.default_us for outcome in outcomes)
    assert steps[-1].n_done == search.n_trials


def test_a_search_goes_on_where_it_stopped(ssh_server, tmp_path, builder):
    class PoweredOffError(Exception):
        pass

    def report(step: Step) -> None:
        if step.n_done == 4:
            raise PoweredOffError

    def connect_again() -> Remote:
        return SshRemote(ssh_server.address, "test")

    path = tmp_path / "journal"
    with pytest.raises(PoweredOffError):
        list(Search(load_board("local"), connect_again, builder, Journal(path), report=report).run())
    layer = max(builder.layers, key=lambda each: each.calls * each.weight_bytes)
    known = {str(knobs): Journal(path).times(layer, knobs) for knobs in layer.candidates}
    assert sum(map(len, known.values())) == 4
    assert len(list(Search(load_board("local"), connect_again, builder, Journal(path)).run())) == 2
    again = Journal(path)
    for knobs in layer.candidates:
        assert again.times(layer, knobs)[: len(known[str(knobs)])] == known[str(knobs)]
    third = Search(load_board("local"), connect_again, builder, Journal(path))
    assert len(list(third.run())) == 2
    assert third.n_trials == 0  # everything is known


def test_a_search_on_an_emulated_board(start_board, tmp_path):
    start_board("virtual-rpi5")
    board = find_board("virtual-rpi5")
    with small_builder(board) as small:
        search = Search(board, lambda: connect(board), small, Journal(tmp_path / "journal"), threads=1)
        outcomes = list(search.run())
    assert search.info["arch"] == "aarch64"
    assert search.info["threads"] == 1
    assert len(outcomes) == 2


def test_no_agent_for_android(tmp_path):
    from edgellm.errors import UnsuitableError
    from edgellm.local_remote import LocalRemote

    with (
        LocalRemote() as remote,
        pytest.raises(UnsuitableError, match="static"),
        serve(load_board("android-arm64"), remote),
    ):
        pass


def test_the_home_of_agents_is_the_boards(tmp_path):
    """A local board's agent lies in the HOME that its commands have."""
    from edgellm.local_remote import LocalRemote

    home = Path(tmp_path / "home")
    home.mkdir()
    with LocalRemote("here", {"HOME": str(home)}) as remote, serve(load_board("local"), remote) as agent:
        client = connect_by_hand(agent, agent.key)
        assert client.function("edgellm.agent_info") != 0
        client.close()
    assert [path.name for path in home.glob(".edgellm/agents/*/*")] == ["edgellm-rt"]
