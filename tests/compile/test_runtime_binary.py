"""What the cross-built program asks of a board: size, libraries, glibc version, page size, no executable stack."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from crosscompile import bionic, runtime
from crosscompile.data import data_path
from crosscompile.errors import CodegenError
from crosscompile.runtime import build_runtime
from crosscompile.spirv.capabilities import Gpu
from crosscompile.target import target_of_tier
from edgellm import cache, virtual, virtual_parts
from edgellm.boards import load_board
from tests.elf import GNU_RELRO, GNU_STACK, LOAD, Elf

BUDGET_BYTES = 230_000 + 40_000 + 20_000 + 110_000  # of AArch64: core, RPC agent, signatures with encryption, server
VULKAN_BUDGET_BYTES = 60_000  # more, in programs for a GPU
OTHERS_BYTES = 460_000  # 32-bit ARM and x86-64 have longer code, musl brings its libc
FLOOR = (2, 28)
TIERS = ("armv8-neon", "armv7-neon", "avx2")
EM_AARCH64 = 183


@pytest.fixture(scope="module", params=TIERS)
def program(request: pytest.FixtureRequest) -> Path:
    return build_runtime(target_of_tier(request.param))


def test_is_small(program: Path) -> None:
    aarch64 = Elf(program).machine == EM_AARCH64
    assert program.stat().st_size < (BUDGET_BYTES if aarch64 else OTHERS_BYTES)


def test_only_static_programs_copy_by_themselves() -> None:
    target = target_of_tier("dotprod")
    phone = target_of_tier("dotprod", "android")
    assert runtime.is_static(target, "musl")
    assert runtime.is_static(phone)
    assert not runtime.is_static(target)
    assert not runtime.is_static(phone.on_gpu(Gpu()))
    assert [path.name for path in runtime.static_sources()] == ["copies.c"]


def test_whatever_makes_programs_makes_other_bundles() -> None:
    hashed = {name for name, _ in cache.bundle_sources()}
    used = [*runtime.sources(vulkan=True), *runtime.static_sources(), *bionic.sources()]
    root = data_path("runtime_c")
    assert {f"runtime_c/{path.relative_to(root)}" for path in used} <= hashed


def test_the_vulkan_backend_is_small() -> None:
    target = target_of_tier("dotprod")
    without, with_it = (build_runtime(each).stat().st_size for each in (target, target.on_gpu(Gpu())))
    assert 0 < with_it - without <= VULKAN_BUDGET_BYTES


def test_needs_only_the_c_library_of_2018(program: Path) -> None:
    elf = Elf(program)
    assert elf.needed() <= {
        "libc.so.6",
        "libdl.so.2",
        "libpthread.so.0",
        "ld-linux-armhf.so.3",
        "ld-linux-aarch64.so.1",
        "ld-linux-x86-64.so.2",
    }
    versions = {name for name in elf.versions() if name.startswith("GLIBC_")}
    assert versions
    assert all(tuple(map(int, name.removeprefix("GLIBC_").split("."))) <= FLOOR for name in versions), versions


def test_maps_on_kernels_with_large_pages(program: Path) -> None:
    loads = Elf(program).of_kind(LOAD)
    assert loads
    assert all(segment["align"] == 0x10000 for segment in loads)


def test_is_hardened(program: Path) -> None:
    elf = Elf(program)
    assert elf.kind == 3  # ET_DYN: position-independent
    assert [segment["flags"] & 1 for segment in elf.of_kind(GNU_STACK)] == [0]
    assert all(segment["flags"] & 3 != 3 for segment in elf.of_kind(LOAD))  # never writable and executable
    assert elf.of_kind(GNU_RELRO)
    assert any(tag == 0x6FFFFFFB and value & 1 for tag, value in elf.dynamic())  # DF_1_NOW


def test_static_program_starts_emulated() -> None:
    """Android and unknown systems: musl, no loader, no library."""
    program = build_runtime(target_of_tier("armv8-neon"), "musl")
    elf = Elf(program)
    assert not elf.needed()
    assert program.stat().st_size < OTHERS_BYTES
    if reason := virtual_parts.missing_tool():
        pytest.skip(f"no emulator: {reason}")
    _, emulator = virtual.fetch(load_board("virtual-rpi5"))
    done = subprocess.run([str(emulator), str(program), "--version"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout[:11]) == (0, "edgellm-rt ")


def test_second_build_is_a_lookup(monkeypatch: pytest.MonkeyPatch) -> None:
    program = build_runtime(target_of_tier("avx2"))
    monkeypatch.setattr(runtime.subprocess, "run", lambda *a, **k: pytest.fail("compiled again"))
    assert build_runtime(target_of_tier("avx2")) == program


def test_a_failing_compiler_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "src" / "broken.c"
    broken.parent.mkdir()
    broken.write_text("int f(void) { return undeclared; }\n")
    monkeypatch.setattr(runtime, "sources", lambda *_: [broken])
    with pytest.raises(CodegenError, match=r"broken\.c:1:22: error: .*undeclared.*ziglang cc") as error:
        build_runtime(target_of_tier("avx2"), cache=tmp_path / "cache")
    assert "\n" not in str(error.value)
    assert not list((tmp_path / "cache").iterdir())  # nothing half-made stays


def test_readelf_agrees(program: Path) -> None:
    """The parser above against binutils, where they are installed."""
    readelf = shutil.which("readelf")
    if readelf is None:
        pytest.skip("readelf is not installed")
    shown = subprocess.run([readelf, "-dW", str(program)], capture_output=True, text=True, check=True).stdout
    assert {line.split("[")[1].rstrip("]") for line in shown.splitlines() if "(NEEDED)" in line} == Elf(
        program
    ).needed()
