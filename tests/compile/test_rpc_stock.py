"""TVM's stock client, tracker and MetaSchedule runner against the agent, unmodified.

What TVM's own tests of a remote server (tests/python/runtime/test_runtime_rpc.py) ask for, as far as it applies:

    test_rpc_array, test_rpc_large_array       test_arrays
    test_rpc_file_exchange                     test_files
    test_rpc_remote_module                     test_module (no relay over a second server, no linking on the board)
    test_rpc_session_constructor_args          test_no_session_to_another_server (the error; there is no second hop)
    test_rpc_echo                              test_missing_functions, test_sync
    test_rpc_tracker_register, …_request       test_tracker_*
    test_rpc_session_timeout_error             test_session_timeout (without a proxy)
    test_compiled_function_with_zero_arguments test_functions_without_arguments

What does not apply, and why:

    test_bigendian_rpc            needs a PowerPC server; no board is big-endian
    test_rpc_simple, _runtime_string, _echo, _return_func, _return_tensor, _return_remote_object
                                  call Python functions and objects that TVM registers in its own server; the agent has
                                  no registry and no objects, and answers what does not exist as TVM does
    test_local_func               has no server
    test_rpc_tracker_via_proxy, and the proxy's half of _session_timeout_error
                                  the agent listens on the loopback only; SSH takes the proxy's place
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import tvm
from tvm import rpc
from tvm.script import ir as I
from tvm.script import tirx as T

from tests.agent import Agent, c_library, program


@I.ir_module
class Kernels:
    @T.prim_func(s_tir=True)
    def nothing() -> T.int64:
        return T.int64(42)

    @T.prim_func(s_tir=True)
    def ignores(unused: T.int64) -> T.int64:
        return T.int64(42)

    @T.prim_func(s_tir=True)
    def main(A: T.Buffer((1000,), "float32"), B: T.Buffer((1000,), "float32")):
        for i in T.parallel(1000):
            with T.sblock("add"):
                vi = T.axis.remap("S", [i])
                B[vi] = A[vi] + T.float32(1)


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("library") / "kernels.so"
    tvm.compile(Kernels, target={"kind": "llvm"}).export_library(str(path))
    return path


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[Agent]:
    with Agent(program(), tmp_path) as running:
        yield running


@pytest.fixture
def session(agent: Agent) -> rpc.RPCSession:
    return agent.connect(60)


def on(session: rpc.RPCSession, array: np.ndarray) -> tvm.runtime.Tensor:
    return tvm.runtime.tensor(array, session.cpu(0))


def upload(session: rpc.RPCSession, path: Path) -> None:
    session.upload(bytearray(path.read_bytes()), path.name)  # given a path, TVM's client leaves the file open


def test_arrays(session):
    for array in (np.ones((3, 4)), np.arange(5041 * 720, dtype="float32").reshape(5041, 720), np.zeros((0, 3), "int8")):
        there = on(session, array)
        assert str(there.device).startswith("remote")
        np.testing.assert_equal(there.numpy(), array)


def test_copies_between_arrays_of_the_board(session):
    a, b = on(session, np.arange(64.0)), on(session, np.zeros(64))
    a.copyto(b)
    np.testing.assert_equal(b.numpy(), np.arange(64.0))


def test_files(session):
    blob = bytearray(np.random.default_rng(1).integers(0, 256, 100_000, dtype="uint8").tobytes())
    session.upload(blob, "dat.bin")
    assert session.download("dat.bin") == blob
    assert session.listdir("") == "dat.bin"
    session.remove("dat.bin")
    session.remove("never-there")
    assert session.listdir("") == ""
    with pytest.raises(tvm.error.RPCError, match=r"dat\.bin: No such file"):
        session.download("dat.bin")


@pytest.mark.parametrize("name", ["../x", "/tmp/x", ".hidden", "a/b", "x" * 300, "", "."])
def test_names_stay_in_the_folder(session, name):
    for call in (lambda: session.upload(bytearray(b"x"), name or "."), lambda: session.download(name)):
        with pytest.raises(tvm.error.RPCError, match="a file's name"):
            call()


def test_module(session, library):
    upload(session, library)
    module = session.load_module("kernels.so")
    x = np.random.default_rng(2).random(1000, dtype="float32")
    a, b = on(session, x), on(session, np.zeros(1000, "float32"))
    evaluator = module.time_evaluator(module.entry_name, session.cpu(0), number=10, repeat=3, min_repeat_ms=2)
    results = evaluator(a, b).results
    assert len(results) == 3
    assert all(0 < seconds < 1 for seconds in results)
    np.testing.assert_equal(b.numpy(), x + 1)
    with pytest.raises(tvm.error.RPCError, match="Expected 2 arguments"):
        module["main"](a)
    with pytest.raises(tvm.error.RPCError, match="shape"):
        module["main"](a, on(session, np.zeros(999, "float32")))
    np.testing.assert_equal(a.numpy(), x)  # the session goes on


def test_functions_without_arguments(session, library):
    upload(session, library)
    module = session.load_module("kernels.so")
    assert module["nothing"]() == 42
    assert module["ignores"](0) == 42


def test_the_evaluator_calls_as_often_as_tvm_says(session, tmp_path_factory):
    path = tmp_path_factory.mktemp("counting") / "counting.so"
    c_library(path, "static int64_t calls; FUNCTION(count) { result->type = 1; result->v.i = calls++; return 0; }")
    upload(session, path)
    module = session.load_module("counting.so")
    module.time_evaluator("count", session.cpu(0), number=7, repeat=5)()
    assert module["count"]() == 1 + 7 * 5
    module.time_evaluator("count", session.cpu(0), number=1, repeat=1, min_repeat_ms=20)()
    assert module["count"]() > 1000
    preprocessed = module.time_evaluator(
        "count", session.cpu(0), 2, 2, cache_flush_bytes=1 << 20, f_preproc="cache_flush_cpu_non_first_arg"
    )
    assert len(preprocessed(on(session, np.zeros(4096)), on(session, np.zeros(4096))).results) == 2
    with pytest.raises(tvm.error.RPCError, match="no function other_preprocessing"):
        module.time_evaluator("count", session.cpu(0), 1, f_preproc="other_preprocessing")


def test_a_library_uploaded_anew_is_the_new_one(session, tmp_path_factory):
    folder = tmp_path_factory.mktemp("versions")
    for version in range(3):
        c_library(folder / "v.so", f"FUNCTION(version) {{ result->type = 1; result->v.i = {version}; return 0; }}")
        upload(session, folder / "v.so")
        module = session.load_module("v.so")
        assert module["version"]() == version


def test_missing_functions(session, library):
    with pytest.raises(AttributeError):
        session.get_function("rpc.test.addone")
    with pytest.raises(AttributeError):
        session.system_lib()
    upload(session, library)
    with pytest.raises(AttributeError):
        session.load_module("kernels.so")["notexist"]
    with pytest.raises(tvm.error.RPCError, match=r"absent\.so"):
        session.load_module("absent.so")


def test_sync(session):
    session.cpu().sync()
    assert session.cpu().exist
    assert not session.cuda().exist


def test_no_session_to_another_server(agent):
    with pytest.raises(tvm.error.RPCError, match="other servers"):
        rpc.connect("127.0.0.1", agent.port, agent.key, session_constructor_args=["rpc.Connect", "127.0.0.1", 1, "k"])


def test_session_timeout(agent):
    session = agent.connect(1)
    array = on(session, np.zeros(4))
    agent.wait_until_idle()
    with pytest.raises(tvm.error.RPCSessionTimeoutError):
        array.numpy()
    assert agent.line()["how"] == "timeout"


# ---- the tracker, which needs tornado ----

LEAVES_SOCKETS_OPEN = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
"""TVM's tracker client does."""


@pytest.fixture
def tracker() -> Iterator[object]:
    pytest.importorskip("tornado", reason="TVM's tracker needs tornado, which the test extra has")
    from tvm.rpc.tracker import Tracker

    running = Tracker(host="127.0.0.1", port=29190, port_end=29290, silent=True)
    yield running
    running.terminate()


def until(condition: Callable[[], bool]) -> None:
    """Waits for something that another process does."""
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@LEAVES_SOCKETS_OPEN
@pytest.mark.parametrize("queue", ["test_device", "127.0.0.1:5555"])
def test_tracker_hands_the_agent_out_again_and_again(tracker, tmp_path, queue):
    options = ("--tracker", f"127.0.0.1:{tracker.port}", "--queue", queue)
    client = rpc.connect_tracker("127.0.0.1", tracker.port)

    def free() -> int:
        return int(client.summary()["queue_info"][queue]["free"])

    with Agent(program(), tmp_path, *options) as agent:
        until(lambda: queue in client.summary()["queue_info"] and free() == 1)
        info = [server for server in client.summary()["server_info"] if server["key"] == f"server:{queue}"]
        assert [server["addr"] for server in info] == [["127.0.0.1", agent.port]]
        for _ in range(3):
            remote = client.request(queue, session_timeout=60)
            assert free() == 0
            np.testing.assert_equal(on(remote, np.arange(9)).numpy(), np.arange(9))
            del remote
            until(lambda: free() == 1)
    until(lambda: free() == 0)


@LEAVES_SOCKETS_OPEN
def test_tracker_keeps_the_second_client_waiting(tracker, tmp_path):
    options = ("--tracker", f"127.0.0.1:{tracker.port}", "--queue", "board")
    client = rpc.connect_tracker("127.0.0.1", tracker.port)
    with Agent(program(), tmp_path, *options) as agent:
        until(lambda: client.summary()["queue_info"].get("board", {}).get("free") == 1)
        first = client.request("board", session_timeout=2)
        array = on(first, np.zeros(1))
        second = rpc.connect_tracker("127.0.0.1", tracker.port).request("board", session_timeout=60)
        assert agent.line()["how"] == "timeout"  # only then could the second have its turn
        np.testing.assert_equal(on(second, np.ones(3)).numpy(), np.ones(3))
        with pytest.raises(tvm.error.RPCSessionTimeoutError):
            array.numpy()
        del second


@LEAVES_SOCKETS_OPEN
def test_metaschedule_runner(tracker, tmp_path, library):
    pytest.importorskip("cloudpickle", reason="TVM's process pool needs cloudpickle, which the test extra has")
    from tvm.s_tir.meta_schedule.arg_info import TensorInfo
    from tvm.s_tir.meta_schedule.runner import EvaluatorConfig, RPCConfig, RPCRunner, RunnerInput

    config = RPCConfig("127.0.0.1", tracker.port, "board", session_timeout_sec=60)
    evaluator = EvaluatorConfig(number=3, repeat=2, min_repeat_ms=1, enable_cpu_cache_flush=True)
    options = ("--tracker", f"127.0.0.1:{tracker.port}", "--queue", "board")
    with Agent(program(), tmp_path, *options):
        client = rpc.connect_tracker("127.0.0.1", tracker.port)
        until(lambda: client.summary()["queue_info"].get("board", {}).get("free") == 1)
        runner = RPCRunner(config, evaluator, max_workers=1)
        info = [TensorInfo("float32", (1000,)), TensorInfo("float32", (1000,))]
        for future in runner.run([RunnerInput(str(library), "cpu", info) for _ in range(4)]):
            result = future.result()
            assert result.error_msg is None
            assert len(result.run_secs) == 2
        del runner
