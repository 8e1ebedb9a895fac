"""Programs for Android that load a GPU's driver, built without the NDK: what they ask of a phone, and of the headers.

Read from the files here. That such a program starts, answers and falls back is tests/emulated/test_phone_gpu.py's; on
Android's own libc it was run by hand (docs/android.md).
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from crosscompile import bionic
from crosscompile.data import data_path
from crosscompile.errors import CodegenError
from crosscompile.runtime import build_runtime, compiler, has_agent, has_vulkan, run_compiler
from crosscompile.spirv.capabilities import Gpu
from crosscompile.target import Target, target_of_tier
from edgellm.boards import load_board
from tests.elf import GNU_RELRO, GNU_STACK, INTERPRETER, LOAD, TLS, Elf

BUDGET_BYTES = 420_000  # of AArch64, without the RPC agent (40 KB) and with the GPU's part (60 KB)
GLOB_DAT, JUMP_SLOT = 1025, 1026
"""R_AARCH64_…: an address of data or code. COPY (1024) would take over as many bytes as a stub pretends."""


@pytest.fixture(autouse=True)
def no_ndk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ANDROID_NDK_HOME", raising=False)


@pytest.fixture
def target() -> Target:
    return load_board("android-arm64").gpu_target()


def test_the_program_is_one_that_androids_linker_takes(target: Target) -> None:
    assert (has_vulkan(target), has_agent(target)) == (True, False)
    program = build_runtime(target)
    elf = Elf(program)
    assert program.stat().st_size < BUDGET_BYTES
    assert elf.kind == 3  # ET_DYN: Android starts only position-independent programs
    (name,) = elf.of_kind(INTERPRETER)
    assert elf.data[name["offset"] :][: name["bytes"]] == b"/system/bin/linker64\0"
    assert elf.needed() == {"libc.so", "libdl.so"}
    assert not elf.versions()  # bionic's have had versions since different releases
    assert not elf.of_kind(TLS)  # since API 29
    assert all(segment["align"] % 0x4000 == 0 for segment in elf.of_kind(LOAD))  # phones with pages of 16 KB
    assert all(segment["flags"] & 3 != 3 for segment in elf.of_kind(LOAD))
    assert [segment["flags"] & 1 for segment in elf.of_kind(GNU_STACK)] == [0]
    assert elf.of_kind(GNU_RELRO)
    assert any(tag == 0x6FFFFFFB and value & 1 for tag, value in elf.dynamic())  # DF_1_NOW


def test_it_takes_only_what_is_listed_from_the_phone(target: Target) -> None:
    imports = Elf(build_runtime(target)).imports()
    listed = {name for names in (*bionic.FUNCTIONS.values(), *bionic.OBJECTS.values()) for name in names}
    assert {name for name, _ in imports} == listed  # all of it: the list names nothing that is not used
    assert {kind for _, kind in imports} == {GLOB_DAT, JUMP_SLOT}


def test_layouts_are_bionics(target: Target, tmp_path: Path) -> None:
    source = data_path("runtime_c") / "tests/bionic_layouts.c"
    run_compiler([*compiler(target), "-std=c11", "-Werror", "-c", str(source), "-o", "layouts.o"], tmp_path)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"arch": "armv7"}, "built for aarch64 alone, not armv7; set ANDROID_NDK_HOME"),
        ({"android_api": 23}, r"need API 24, and the board says 23 \(target.android_api of its manifest\); raise it"),
        ({"android_api": None}, "need API 24, and the board names none"),
    ],
)
def test_what_cannot_be_built_is_an_error_with_a_remedy(target: Target, changes: dict[str, object], said: str) -> None:
    with pytest.raises(CodegenError, match=said):
        compiler(replace(target, **changes))


def test_programs_without_a_gpu_stay_static() -> None:
    android, linux = target_of_tier("dotprod", "android"), target_of_tier("dotprod")
    assert compiler(android) == compiler(linux, "musl")
    assert compiler(linux.on_gpu(Gpu())) == compiler(linux)
