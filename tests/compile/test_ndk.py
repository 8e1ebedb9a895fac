"""Builds with Android's NDK: which one is used, and what is said of one that cannot build.

No NDK can be had from a package mirror, so the one here has an NDK's layout, and a clang that is zig's with another
target. What only the real one can show, that bionic has every function the runtime calls, is not shown here.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from crosscompile import runtime
from crosscompile.errors import CodegenError
from crosscompile.ndk import find_ndk
from crosscompile.runtime import build_runtime, identity
from crosscompile.target import Target, target_of_tier
from edgellm.boards import load_board
from edgellm.cli import main

MODEL = str(Path(__file__).resolve().parents[2] / "examples/voice_assistant/model")
CLANG = r"""#!/bin/sh
printf '%s\n' "$@" >>"{record}"
[ "$1" = -target ] && shift 2
exec "{python}" -m ziglang cc -target aarch64-linux-musl -static "$@"
"""


@pytest.fixture
def target() -> Target:
    return load_board("android-arm64").gpu_target()


@pytest.fixture
def ndk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = tmp_path / "ndk"
    clang = root / "toolchains/llvm/prebuilt/linux-x86_64/bin/clang"
    clang.parent.mkdir(parents=True)
    clang.write_text(CLANG.format(record=tmp_path / "record", python=sys.executable))
    clang.chmod(0o755)
    for level in (21, 24, 35):
        libraries = clang.parents[1] / "sysroot/usr/lib/aarch64-linux-android"
        (libraries / str(level)).mkdir(parents=True)
    (root / "source.properties").write_text("Pkg.Desc = Android NDK\nPkg.Revision = 27.2.12479018\n")
    monkeypatch.setenv("ANDROID_NDK_HOME", str(root))
    return root


def test_it_builds_for_android_alone_at_the_manifests_api_level(
    target: Target, ndk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert find_ndk(target_of_tier("dotprod")) is None
    program = build_runtime(target, cache=tmp_path / "cache")
    arguments = (tmp_path / "record").read_text().split("\n")
    assert arguments[:2] == ["-target", "aarch64-linux-android24"]
    assert "-lpthread" not in arguments  # the NDK has no such library
    assert {"-DELLM_VULKAN", "-ldl"} <= set(arguments)
    assert "-Wl,-z,max-page-size=65536" in arguments
    assert program.read_bytes()[:4] == b"\x7fELF"
    # It is kept, apart from that of another revision.
    monkeypatch.setattr(runtime.subprocess, "run", lambda *a, **k: pytest.fail("compiled again"))
    assert build_runtime(target, cache=tmp_path / "cache") == program
    first = find_ndk(target)
    (ndk / "source.properties").write_text("Pkg.Revision = 28.0.13004108\n")
    second = find_ndk(target)
    assert first is not None
    assert second is not None
    assert first.identity != second.identity == identity(target)
    assert str(tmp_path) not in first.identity


def test_one_that_cannot_build_is_an_error_with_a_remedy(target: Target, ndk: Path) -> None:
    def said() -> str:
        with pytest.raises(CodegenError) as caught:
            find_ndk(target)
        assert f"ANDROID_NDK_HOME is {ndk}, but" in str(caught.value)
        assert "unset it" in str(caught.value)
        return str(caught.value)

    with pytest.raises(CodegenError, match=r"no target\.android_api"):
        find_ndk(replace(target, android_api=None))
    target = replace(target, android_api=36)
    assert "27.2.12479018 has libraries for API 21 to 35, and the board asks for 36" in said()
    clang = next(ndk.glob("toolchains/llvm/prebuilt/*/bin/clang"))
    clang.chmod(0o644)
    assert "has no program toolchains/llvm/prebuilt/*/bin/clang" in said()
    (ndk / "source.properties").write_text("Pkg.Desc = x\n")
    assert "names no Pkg.Revision" in said()
    (ndk / "source.properties").unlink()
    assert "so it is no NDK" in said()


def test_a_clang_that_fails_says_why(target: Target, ndk: Path, tmp_path: Path) -> None:
    clang = next(ndk.glob("toolchains/llvm/prebuilt/*/bin/clang"))
    clang.write_text("#!/bin/sh\necho 'error: cannot execute' >&2; exit 1\n")
    with pytest.raises(CodegenError, match="the C compiler failed: error: cannot execute"):
        build_runtime(target, cache=tmp_path / "cache")
    clang.write_bytes(b"\x7fELF of another machine")
    with pytest.raises(CodegenError, match=r"the C compiler did not run: .*Exec format error"):
        build_runtime(target, cache=tmp_path / "cache")


def test_a_wrong_folder_is_told_before_anything_is_compiled(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("ANDROID_NDK_HOME", str(tmp_path / "nowhere"))
    monkeypatch.setenv("EDGELLM_CACHE", str(tmp_path / "cache"))
    assert main(["compile", MODEL, "--board", "android-arm64", "-o", str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"edgellm: ANDROID_NDK_HOME is {tmp_path / 'nowhere'}, but there is no such folder")
