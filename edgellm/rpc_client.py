"""TVM's stock RPC client, as tuning uses it; imported only in a process that forwards nothing (edgellm.rpc)."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Sequence
from typing import Any

from tvm import rpc, runtime

from edgellm.errors import RemoteError
from edgellm.terminal import one_line

_FILE, _PLAN, _MODULES = "measured.so", "measured.json", "measured.spv"


class Session:
    """A session with an agent, and what was loaded in it. Whatever TVM raises becomes a RemoteError."""

    def __init__(self, port: int, key: str, timeout_s: float) -> None:
        try:
            self._session = rpc.connect("127.0.0.1", port, key, session_timeout=timeout_s)
            self.info = self._object("edgellm.agent_info")
        except RemoteError:
            raise
        except Exception as error:  # TVM raises RuntimeError, OSError and errors of its own
            raise RemoteError(f"the RPC agent does not answer: {one_line(str(error), 200)}") from error
        self._device = self._session.cpu(0)
        self._module: Any = None
        self._tensors: list[Any] = []
        self._n_calls = 0  # of a kernel in each function of a plan; 0: a library is loaded

    def load(self, library: bytes, arguments: Sequence[tuple[str, int]]) -> None:
        """Loads a library, and makes the tensors that its functions take: (dtype, elements) each."""
        try:
            self._tensors, self._module, self._n_calls = [], None, 0  # memory first: the next ones may need it
            self._session.upload(bytearray(library), _FILE)
            self._module = self._session.load_module(_FILE)
            fill = self._session.get_function("tvm.contrib.random.random_fill_for_measure")
            for dtype, elements in arguments:
                tensor = runtime.empty((elements,), dtype, self._device)
                fill(tensor)
                self._tensors.append(tensor)
        except Exception as error:
            raise RemoteError(f"loading a library: {one_line(str(error), 300)}") from error

    def load_plan(self, modules: bytes, plan: str, position: int, n_calls: int) -> dict[str, Any]:
        """Opens the board's GPU with a plan (runtime_c/rpc/gpu_trial.h); returns what that is: name, is_processor."""
        try:
            for name, data in ((_PLAN, plan.encode()), (_MODULES, modules)):
                self._session.upload(bytearray(data), name)
            answer = self._session.get_function("edgellm.gpu_open")(_PLAN, _MODULES, position)
        except Exception as error:
            raise RemoteError(f"opening the GPU: {one_line(str(error), 300)}") from error
        self._n_calls = n_calls
        return object_of(str(answer), "edgellm.gpu_open")

    def measure(self, function: str, repeat: int, min_repeat_ms: int) -> dict[str, Any]:
        """Times a function with TVM's time evaluator: {"seconds": […], "before", "after": states of the board}."""
        try:
            evaluate = (self._gpu_evaluator if self._n_calls > 0 else self._evaluator)(function, repeat, min_repeat_ms)
            before = self._object("edgellm.board_state")
            seconds = evaluate()
            after = self._object("edgellm.board_state")
        except RemoteError:
            raise
        except Exception as error:
            raise RemoteError(f"measuring {function}: {one_line(str(error), 300)}") from error
        return {"seconds": list(seconds), "before": before, "after": after}

    def _evaluator(self, function: str, repeat: int, min_repeat_ms: int) -> Callable[[], Sequence[float]]:
        """Times a function of the library."""
        evaluator = self._module.time_evaluator(
            function, self._device, number=1, repeat=repeat, min_repeat_ms=min_repeat_ms
        )

        def evaluate() -> Sequence[float]:
            seconds: Sequence[float] = evaluator(*self._tensors).results
            return seconds

        return evaluate

    def _gpu_evaluator(self, function: str, repeat: int, min_repeat_ms: int) -> Callable[[], Sequence[float]]:
        """Times a function of the plan, by its index; seconds per call of its kernel."""
        time = self._session.get_function("edgellm.gpu_time")

        def evaluate() -> Sequence[float]:
            raw = bytes(time(int(function), repeat, min_repeat_ms))
            if len(raw) != 8 * repeat:
                raise RemoteError(f"edgellm.gpu_time: {len(raw)} bytes for {repeat} times")
            return [seconds / self._n_calls for seconds in struct.unpack(f"<{repeat}d", raw)]

        return evaluate

    def _object(self, function: str) -> dict[str, Any]:
        """The JSON object that a function of the agent returns (runtime_c/rpc/board.h)."""
        return object_of(str(self._session.get_function(function)()), function)


def object_of(text: str, function: str) -> dict[str, Any]:
    """The JSON object in an agent's answer. RemoteError if it is none."""
    try:
        answer = json.loads(text)
    except ValueError:
        answer = None
    if not isinstance(answer, dict):
        raise RemoteError(f"{function}: the agent's answer is no JSON object: {one_line(text, 80)}")
    return answer
