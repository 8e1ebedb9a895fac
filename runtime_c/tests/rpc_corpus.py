"""Writes corpus/rpc: sessions as clients hold them, for fuzz_rpc.c. The agent's handles are predictable."""

from __future__ import annotations

import struct
from pathlib import Path

FOLDER = Path(__file__).parent / "corpus" / "rpc"
CPU = struct.pack("<iii", 6, 1, 0)


def handle(slot: int, generation: int = 1) -> int:
    return generation << 32 | slot


def integer(value: int) -> bytes:
    return struct.pack("<iq", 1, value)


def pointer(value: int, kind: int = 4) -> bytes:
    return struct.pack("<iQ", kind, value)


def text(value: str) -> bytes:
    return struct.pack("<iQ", 8, len(value)) + value.encode()


def blob(value: bytes) -> bytes:
    return struct.pack("<iQ", 9, len(value)) + value


def small(value: str) -> bytes:
    return struct.pack("<iiQ", 11, 65, len(value)) + value.encode()


def description(of: int, shape: tuple[int, ...], offset: int = 0) -> bytes:
    head = struct.pack("<QiiiBBH", of, 1, 0, len(shape), 2, 32, 1)
    return head + struct.pack(f"<{len(shape)}qQ", *shape, offset)


def tensor(of: int, shape: tuple[int, ...], offset: int = 0) -> bytes:
    return struct.pack("<i", 7) + description(of, shape, offset)


def frame(code: int, *values: bytes) -> bytes:
    return struct.pack("<ii", code, len(values)) + b"".join(values)


def call(function: int, *values: bytes) -> bytes:
    return struct.pack("<iQi", 3, function, len(values)) + b"".join(values)


def ask(name: str) -> bytes:
    return frame(9, text(name))


GREETING = struct.pack("<iQ", 2, 5) + b"0.8.0" + struct.pack("<i", 0)
UPLOAD = [ask("tvm.rpc.server.upload"), call(handle(1), text("k.so"), blob(b"\x7fELF"))]
LOAD = [ask("tvm.rpc.server.load_module"), call(handle(2), text("k.so"))]
MEMORY = [frame(13, CPU, integer(64), integer(64), struct.pack("<iBBHi", 5, 2, 32, 1, 0))]
NUMBERS = (10, 2, 1, 100, 0, 1, 0)

SESSIONS: dict[str, list[bytes]] = {
    "files": [
        GREETING, *UPLOAD, ask("tvm.rpc.server.download"), call(handle(2), small("k.so")),
        ask("tvm.rpc.server.listdir"), call(handle(3), text("x")), ask("tvm.rpc.server.remove"),
        call(handle(4), text("k.so")), call(handle(4), text("")), frame(10, pointer(handle(1))), frame(1),
    ],
    "call": [
        GREETING, *UPLOAD, *LOAD, *MEMORY, ask("tvm.rpc.server.ModuleGetFunction"),
        call(handle(5), pointer(handle(3), 73), text("main"), struct.pack("<iq", 2, 0)),
        call(handle(6), tensor(handle(4), (4, 4)), integer(1), struct.pack("<id", 3, 0.5), text("abc"), pointer(0)),
        frame(10, pointer(handle(3))), frame(10, pointer(handle(6))),
    ],
    "time": [
        GREETING, *UPLOAD, *LOAD, *MEMORY, ask("runtime.RPCTimeEvaluator"),
        call(handle(5), pointer(handle(3), 73), text("main"), integer(1), integer(0), *map(integer, NUMBERS),
             text("cache_flush_cpu_non_first_arg")),
        call(handle(6), tensor(handle(4), (16,)), tensor(handle(4), (4,), 48)),
    ],
    "memory": [
        *MEMORY, *MEMORY, struct.pack("<i", 7) + description(handle(1), (16,)) + struct.pack("<Q", 64) + bytes(64),
        struct.pack("<i", 7) + description(handle(1), (100,)) + struct.pack("<Q", 400) + bytes(400),
        struct.pack("<i", 6) + description(handle(1), (4,), 48) + struct.pack("<Q", 16),
        frame(16, tensor(handle(1), (16,)), tensor(handle(2), (16,)), pointer(0)),
        frame(17, tensor(0, (4, 4)), struct.pack("<i", 0)), frame(14, CPU, pointer(handle(2))),
        frame(13, CPU, integer(8), integer(1)), frame(12, CPU, integer(0)), frame(11, CPU), frame(15, CPU, pointer(0)),
        frame(18, CPU), frame(19, CPU, pointer(0)), frame(20, CPU, pointer(0)), frame(21, CPU),
    ],
    "own": [
        ask("edgellm.agent_info"), call(handle(1)), ask("edgellm.board_state"), call(handle(2)),
        ask("edgellm.set_threads"), call(handle(3), integer(2)), *MEMORY,
        ask("tvm.contrib.random.random_fill_for_measure"), call(handle(5), tensor(handle(4), (16,))), ask("nothing"),
    ],
    "gpu": [
        GREETING, ask("edgellm.gpu_open"), call(handle(1), text("p.json"), text("m.spv"), integer(2)),
        ask("edgellm.gpu_time"), call(handle(2), integer(2), integer(3), integer(20)),
        call(handle(2), integer(1), integer(1), integer(0)), call(handle(1), text("../p"), text(""), integer(-1)),
    ],
}  # fmt: skip


def main() -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, frames in SESSIONS.items():
        framed = b"".join(struct.pack("<H", len(each)) + each for each in frames)
        (FOLDER / name).write_bytes(b"\0" + framed)
        stream = b"".join(struct.pack("<Q", len(each)) + each for each in frames)
        (FOLDER / f"{name}-stream").write_bytes(b"\1" + stream)


if __name__ == "__main__":
    main()
