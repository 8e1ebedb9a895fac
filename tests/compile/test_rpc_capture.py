"""A recorded session of TVM's stock client with TVM's own server (tests/oracle/rpc.py), replayed against the agent.

The agent must answer with the same bytes, but for what is its own: the numbers of handles, which are translated, and
times, which are the clock's.
"""

from __future__ import annotations

import platform
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.agent import Agent, program, receive

CAPTURE = Path(__file__).resolve().parents[1] / "data" / "rpc_capture.txt"
KEY = "capture-0123456789abcdef"
POINTER, BYTES = 4, 9
TIMES_BYTES = 3 * 8


def streams() -> tuple[bytes, bytes]:
    """What the client said, and what the server said."""
    said = {"C": b"", "S": b""}
    for line in CAPTURE.read_text().splitlines():
        who, data = line.split()
        said[who] += bytes.fromhex(data)
    return said["C"], said["S"]


def frames(stream: bytes) -> Iterator[bytes]:
    while stream:
        (n,) = struct.unpack_from("<Q", stream)
        yield stream[: 8 + n]
        stream = stream[8 + n :]


def handle_of(reply: bytes) -> tuple[int, int] | None:
    """(place, value) of a handle in a reply."""
    code, count, kind = struct.unpack_from("<iii", reply, 8)
    if code != 4:
        return None
    if count == 1 and kind == POINTER:
        return 20, struct.unpack_from("<Q", reply, 20)[0]
    if count == 2 and struct.unpack_from("<i", reply, 28)[0] == POINTER:
        return 32, struct.unpack_from("<Q", reply, 32)[0]
    return None


def without_times(reply: bytes) -> bytes:
    is_times = len(reply) == 8 + 4 + 4 + 12 + 4 + 8 + TIMES_BYTES and struct.unpack_from("<i", reply, 28)[0] == BYTES
    return reply[:-TIMES_BYTES] if is_times else reply


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the capture uploads machine code for x86-64")
def test_the_agent_answers_as_tvms_own_server(tmp_path):
    client, server = streams()
    greeting = 8 + struct.unpack_from("<i", client, 4)[0]
    answer = 8 + struct.unpack_from("<i", server, 4)[0]
    known: dict[int, int] = {}
    replies = frames(server[answer:])
    n_handles = 0
    with Agent(program(), tmp_path, key=KEY) as agent:
        connection = agent.raw(client[:greeting])
        assert receive(connection, answer) == server[:answer]
        for frame in frames(client[greeting:]):
            if struct.unpack_from("<i", frame, 8)[0] == 1:
                break
            for theirs, ours in known.items():
                frame = frame.replace(struct.pack("<Q", theirs), struct.pack("<Q", ours))
            connection.sendall(frame)
            (n,) = struct.unpack("<Q", head := receive(connection, 8))
            reply, expected = head + receive(connection, n), next(replies)
            place = handle_of(expected)
            if place is not None and place[1] != 0:
                at, theirs = place
                known[theirs] = struct.unpack_from("<Q", reply, at)[0]
                n_handles += 1
                reply = reply[:at] + expected[at : at + 8] + reply[at + 8 :]
            assert without_times(reply) == without_times(expected)
    assert n_handles > 10
    assert next(replies, None) is None
