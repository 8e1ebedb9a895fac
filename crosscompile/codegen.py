"""Kernels to machine code: TIR functions with a plain C interface, linked into one shared object."""

from __future__ import annotations

import math
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tvm
from tvm import s_tir, tirx
from tvm.ir import PointerType, PrimType
from tvm.tirx.buffer import is_buffer_var

from crosscompile.errors import CodegenError
from crosscompile.kernels.build import ORIGIN, RANGE
from crosscompile.target import Target

SCALARS = ("table_cap",)
"""Symbolic dimensions that may become scalar arguments, in this order."""


@dataclass(frozen=True)
class Signature:
    """How a kernel is called: its symbol, pointer parameters by name, scalars by symbol, size of the shared range.

    grid: workgroups in x, y, z instead of that range, on a GPU.
    """

    name: str
    pointers: tuple[str, ...]
    scalars: tuple[str, ...]
    groups: int
    grid: tuple[int, int, int] | None = None


def placement() -> list[Any]:
    """The first half of TVM's own order: blocks become opaque, and every local buffer as small as its use."""
    return [
        s_tir.transform.CanonicalizeLoop(),
        s_tir.transform.LowerInitBlock(),
        s_tir.transform.PlanAndUpdateBufferAllocationLocation(),
        s_tir.transform.ConvertBlocksToOpaque(),
        s_tir.transform.CompactBufferAllocation(),
        s_tir.transform.LowerMatchBuffer(),
    ]


def lowering(small: bool = False) -> list[Any]:
    """The second half, to what LLVM code generation takes, without the packed calling convention.

    small: every index fits 32 bits. Otherwise those are narrowed that stay small as can be seen from the loops, which
    the shared range hides: two registers an index, on a core that has thirteen.
    """
    narrow = tirx.transform.ForceNarrowIndexToInt32() if small else tirx.transform.NarrowDataType(32)
    return [
        tirx.transform.StmtSimplify(),
        s_tir.transform.LowerOpaqueBlock(),
        tirx.transform.FlattenBuffer(),
        narrow,
        s_tir.transform.LoopPartition(),
        tirx.transform.VectorizeLoop(True),
        tirx.transform.StorageRewrite(),
        s_tir.transform.HoistIfThenElse(),
        tirx.transform.UnrollLoop(),
        tirx.transform.StmtSimplify(),
        s_tir.transform.RewriteUnsafeSelect(),
        tirx.transform.CommonSubexprElim(),
    ]


def replace_range(function: tirx.PrimFunc, make: Callable[[tirx.For], Any]) -> tuple[tirx.PrimFunc, int]:
    """The function with what `make` makes of the loop marked RANGE in its place, and that loop's extent."""
    extents: list[int] = []

    def rewrite(node: Any) -> Any:
        """The statement with its outermost marked loop replaced; descends only where that loop may lie."""
        if isinstance(node, tirx.For):
            if RANGE not in node.annotations:
                return node
            extents.append(int(node.extent))
            return make(node)
        if isinstance(node, tirx.SeqStmt):
            return tirx.SeqStmt([rewrite(child) for child in node.seq])
        if isinstance(node, s_tir.SBlockRealize):
            block = node.block
            inner = s_tir.SBlock(
                block.iter_vars,
                block.reads,
                block.writes,
                block.name_hint,
                rewrite(block.body),
                block.init,
                block.alloc_buffers,
                block.match_buffers,
                block.annotations,
            )
            return s_tir.SBlockRealize(node.iter_values, node.predicate, inner)
        return node

    body = rewrite(function.body)
    if len(extents) != 1:
        name = function.attrs["global_symbol"]
        raise AssertionError(f"kernel {name} has {len(extents)} shared ranges instead of one")
    return tirx.PrimFunc(function.params, body, function.ret_type, function.attrs), extents[0]


def _share_range(function: tirx.PrimFunc) -> tuple[tirx.PrimFunc, int]:
    """Turns the loop marked RANGE into [g0, g1), two new last parameters. Returns its extent too."""
    g0, g1 = tirx.Var("g0", "int64"), tirx.Var("g1", "int64")
    made, extent = replace_range(
        function, lambda loop: tirx.For(loop.loop_var, g0, g1 - g0, tirx.ForKind.SERIAL, loop.body)
    )
    return tirx.PrimFunc([*made.params, g0, g1], made.body, made.ret_type, made.attrs), extent


def _plain_interface(function: tirx.PrimFunc) -> tuple[tirx.PrimFunc, tuple[str, ...], tuple[str, ...]]:
    """Buffers become pointers, symbolic dimensions that the body uses become scalars before g0 and g1; returns 0."""
    buffers = [p for p in function.params if is_buffer_var(p)]
    ranges = [p for p in function.params if not is_buffer_var(p)]
    pointers = [tirx.Var(p.name + "_p", PointerType(p.ty.dtype, p.ty.storage_scope)) for p in buffers]
    shape_vars: dict[str, Any] = {}
    for buffer in buffers:
        for extent in [*buffer.ty.shape, *buffer.ty.strides]:
            if isinstance(extent, tvm.ir.Expr):
                for var in tirx.analysis.undefined_vars(extent):
                    shape_vars.setdefault(var.name, var)
    declarations = [tirx.DeclBuffer(b, data=pointer) for b, pointer in zip(buffers, pointers, strict=True)]
    used = {v.name for v in tirx.analysis.undefined_vars(function.body, [*buffers, *ranges])}
    scalars = tuple(name for name in SCALARS if name in shape_vars and name in used)
    numbers = [*(shape_vars[name] for name in scalars), *ranges]
    wide = [tirx.Var(number.name, "int64") for number in numbers]  # whatever the kernel computes with
    narrowed = [tirx.Bind(n, tirx.Cast(n.ty.dtype, w)) for n, w in zip(numbers, wide, strict=True)]
    body: Any = tirx.SeqStmt([*narrowed, *declarations, function.body])
    for buffer in buffers:
        body = tirx.AttrStmt(buffer, "storage_alignment", tirx.IntImm("int32", 64), body)
    for key, value in (("device_id", 0), ("device_type", 1)):  # LowerTVMBuiltin asks for these
        body = tirx.AttrStmt("default", key, tirx.IntImm("int32", value), body)
    body = tirx.SeqStmt([body, tirx.Return(tirx.IntImm("int32", 0))])
    plain = tirx.PrimFunc([*pointers, *wide], body, PrimType("int32"), function.attrs)
    return plain.with_attr("calling_conv", 1), tuple(b.name for b in buffers), scalars


def _is_small(function: tirx.PrimFunc) -> bool:
    """Whether no parameter can have 2^31 elements, as a KV cache can whose blocks are not counted yet."""
    shapes = [[int(n) for n in p.ty.shape if isinstance(n, tirx.IntImm)] for p in function.params if is_buffer_var(p)]
    return all(math.prod(shape) < 1 << 31 for shape in shapes)


_SIZES = re.compile(r"(T\.Buffer|T\.decl_buffer)\(\((?:T\.int64\(\d+\)|\d+|\"\w+\"|\w+|, ?|,)*\)")


def _code_key(function: tirx.PrimFunc) -> str:
    """The text of a lowered function without the sizes of its arguments, which no instruction depends on."""
    return _SIZES.sub(r"\1(()", function.without_attr("global_symbol").script())


def _lower(module: tvm.IRModule, target: Target) -> tvm.IRModule:
    small = {s: f for s, f in module.functions.items() if target.arch == "armv7" and _is_small(f)}
    rest = {symbol: f for symbol, f in module.functions.items() if symbol not in small}
    done = tvm.ir.transform.Sequential(lowering())(tvm.IRModule(rest, attrs=module.attrs))
    if small:
        done.update(tvm.ir.transform.Sequential(lowering(small=True))(tvm.IRModule(small, attrs=module.attrs)))
    return done


def compile_object(kernels: Mapping[str, tirx.PrimFunc], target: Target) -> tuple[Any, dict[str, Signature]]:
    """LLVM module of the kernels, and how each is called. Kernels are scheduled S-TIR functions by symbol name.

    Functions of one kernel for several row counts mostly differ in the sizes of buffers alone: those share the code,
    and the symbol, of the first.
    """
    llvm = tvm.target.Target(target.llvm)
    module = tvm.IRModule(
        {name: function.without_attr(ORIGIN).with_attr("global_symbol", name) for name, function in kernels.items()}
    )
    module = tirx.transform.BindTarget(llvm.with_host(llvm))(module)
    module = tvm.ir.transform.Sequential(placement())(module)
    # only now: with an unknown first group, buffers would be indexed by min(g, 0) and never live in registers
    groups: dict[str, int] = {}
    shared: dict[Any, tirx.PrimFunc] = {}
    for symbol, function in module.functions.items():
        shared[symbol], groups[symbol.name_hint] = _share_range(function)
    module = _lower(tvm.IRModule(shared, attrs=module.attrs), target)
    signatures: dict[str, Signature] = {}
    plain: dict[Any, tirx.PrimFunc] = {}
    known: dict[str, str] = {}
    for symbol, function in module.functions.items():
        name = symbol.name_hint
        lowered, pointers, scalars = _plain_interface(function)
        first = known.setdefault(_code_key(lowered), name)
        if first == name:
            plain[symbol] = lowered.with_attr("target", llvm)
        signatures[name] = Signature(first, pointers, scalars, groups[name])
    module = tirx.transform.LowerIntrin()(tirx.transform.LowerTVMBuiltin()(tvm.IRModule(plain)))
    return tvm.get_global_func("target.build.llvm")(module, llvm), signatures


TRIPLES = {
    "aarch64": "aarch64-linux-gnu.2.28",
    "armv7": "arm-linux-gnueabihf.2.28",
    "x86_64": "x86_64-linux-gnu.2.28",
}
"""What the linker is told. Nothing of a libc is linked."""


def link(library: Any, target: Target) -> bytes:
    """kernels.so: no imports, no relocations, no libc. CodegenError names what the linker missed."""
    with tempfile.TemporaryDirectory(prefix="edgellm-link-") as folder:
        kernels, result = Path(folder, "kernels.o"), Path(folder, "kernels.so")
        library.write_to_file(str(kernels))
        flags = ["-shared", "-nostdlib", "-O2", "-ffreestanding", "-fno-builtin", "-fPIC", "-Wl,-s"]
        flags += ["-Wl,--no-undefined", "-Wl,-z,max-page-size=65536", "-Wl,--gc-sections"]
        command = [sys.executable, "-m", "ziglang", "cc", "-target", TRIPLES[target.arch], *flags, "-o", str(result)]
        support = Path(__file__).with_name("freestanding.c")
        done = subprocess.run([*command, str(support), str(kernels)], capture_output=True, text=True, check=False)
        if done.returncode:
            first = next((line for line in done.stderr.splitlines() if "error" in line), done.stderr.strip()[-300:])
            raise CodegenError(f"linking kernels.so for {target.tier.name} failed: {first}")
        return result.read_bytes()


def compile_kernels(kernels: Mapping[str, tirx.PrimFunc], target: Target) -> tuple[bytes, dict[str, Signature]]:
    """kernels.so and the signature of each kernel in it."""
    library, signatures = compile_object(kernels, target)
    return link(library, target), signatures
