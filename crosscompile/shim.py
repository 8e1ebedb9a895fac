"""What tuning uploads: the kernels that would ship, behind TVM's packed calling convention.

For every kernel there is a function that takes one tensor per pointer and launches the kernel over all its row groups,
on the agent's thread pool, as a step of a plan would. Weights come as several copies one behind the other, and every
call takes the next: a copy that was used is out of the cache when its turn comes again, as a layer's weights are.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tvm import tirx

from crosscompile.codegen import TRIPLES, compile_object
from crosscompile.data import data_path
from crosscompile.errors import CodegenError
from crosscompile.plan import work_grain
from crosscompile.target import Target


@dataclass(frozen=True)
class Argument:
    """One tensor of a measured function: its elements, and whether it comes in copies (weights do)."""

    dtype: str
    elements: int
    rotates: bool

    @property
    def n_bytes(self) -> int:
        return self.elements * np.dtype(self.dtype).itemsize


@dataclass(frozen=True)
class Measurable:
    """A library of functions that all take the same tensors. functions: per kernel, equal ones share a name."""

    library: bytes
    functions: Mapping[str, str]
    arguments: tuple[Argument, ...]


def arguments_of(function: tirx.PrimFunc) -> tuple[Argument, ...]:
    """The tensors of a linear layer. Weights have a rank of their own: row groups come first in them."""
    made = []
    for buffer in function.params:
        shape, dtype = [int(extent) for extent in buffer.ty.shape], str(buffer.ty.dtype)
        rotates = len(shape) == 5 or (len(shape) == 3 and dtype in ("float16", "float32"))
        made.append(Argument(dtype, int(np.prod(shape)), rotates))
    return tuple(made)


def build(kernels: Mapping[str, tirx.PrimFunc], target: Target, copies: int) -> Measurable:
    """Compiles scheduled kernels of one workload into one library. Raises CodegenError."""
    described = {arguments_of(function) for function in kernels.values()}
    if len(described) != 1:
        raise AssertionError("kernels of one library take the same tensors")
    (arguments,) = described
    library, signatures = compile_object(kernels, target)
    functions = {name: f"measure_{signature.name}" for name, signature in signatures.items()}
    grain = {s.name: work_grain(s.groups, sum(argument.n_bytes for argument in arguments)) for s in signatures.values()}
    parts = [_function(s.name, s.groups, grain[s.name], arguments, copies) for s in _unique(signatures.values())]
    return Measurable(_link(library, _HEAD + "\n".join(parts), target), functions, arguments)


def _unique(signatures: Any) -> list[Any]:
    return list({signature.name: signature for signature in signatures}.values())


_HEAD = """\
#include "launch.h"
typedef struct { void *data; int32_t device[2], n_dims; uint8_t code, bits; uint16_t lanes; int64_t *shape, *strides;
                 uint64_t offset; } tensor;
typedef struct { int32_t type; uint32_t zero; union { int64_t i; tensor *tensor; } v; } value;
__attribute__((visibility("default"))) int32_t (*__ellm_launch_kernel)(const ellm_launch *launch);
static void *data(const value *v, int64_t n_bytes) {
    if (v->type != 7 || v->v.tensor->n_dims != 1 || v->v.tensor->shape[0] * v->v.tensor->bits / 8 != n_bytes) return 0;
    return (char *)v->v.tensor->data + v->v.tensor->offset;
}
"""


def _function(name: str, groups: int, grain: int, arguments: Sequence[Argument], copies: int) -> str:
    """The C function that measures one kernel. -1: not the tensors it takes, or no agent that launches."""
    places = []
    for i, argument in enumerate(arguments):
        n_bytes = argument.n_bytes
        if argument.rotates:
            places.append(f"    p[{i}] = data(&args[{i}], {n_bytes * copies}LL);\n    if (!p[{i}]) return -1;")
            places.append(f"    p[{i}] = (char *)p[{i}] + turn % {copies} * {n_bytes}LL;")
        else:
            places.append(f"    p[{i}] = data(&args[{i}], {n_bytes}LL);\n    if (!p[{i}]) return -1;")
    prototype = ", ".join(["void *"] * len(arguments) + ["int64_t", "int64_t"])
    body = "\n".join(places)
    return f"""\
int32_t {name}({prototype});
__attribute__((visibility("default"))) int32_t __tvm_ffi_measure_{name}(void *self, const value *args, int32_t n,
                                                                       value *result) {{
    static int64_t turn;
    void *p[{len(arguments)}];
    if (n != {len(arguments)} || !__ellm_launch_kernel) return -1;
{body}
    turn++;
    ellm_launch launch = {{.function = (void (*)(void)){name}, .pointers = p, .groups = {groups}, .grain = {grain},
                          .n_pointers = {len(arguments)}}};
    return __ellm_launch_kernel(&launch);
}}
"""


def _link(library: Any, source: str, target: Target) -> bytes:
    with tempfile.TemporaryDirectory(prefix="edgellm-shim-") as folder:
        kernels, shim, result = (Path(folder, name) for name in ("kernels.o", "shim.c", "measured.so"))
        library.write_to_file(str(kernels))
        shim.write_text(source, encoding="utf-8")
        flags = ["-shared", "-nostdlib", "-O2", "-ffreestanding", "-fno-builtin", "-fPIC", "-fvisibility=hidden", "-w"]
        flags += ["-fno-sanitize=undefined", "-fno-stack-protector", "-Wl,-s", "-Wl,-z,max-page-size=65536"]
        command = [sys.executable, "-m", "ziglang", "cc", "-target", TRIPLES[target.arch], *flags]
        command += [f"-I{data_path('runtime_c') / 'src'}", "-o", str(result), str(shim), str(kernels)]
        command.append(str(Path(__file__).with_name("freestanding.c")))
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            first = next((line for line in done.stderr.splitlines() if "error" in line), done.stderr.strip()[-300:])
            raise CodegenError(f"linking kernels to measure for {target.tier.name} failed: {first}")
        return result.read_bytes()
