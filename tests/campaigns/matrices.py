"""Kernels for matrix units, where Debian's own lavapipe has none: with that of Debian sid, whose matrices are 8 x 8.

    python -m tests.campaigns.matrices [--all] [PYTEST ARGUMENTS]

Mesa's packages and what they need are fetched by this machine's apt, authenticated, and unpacked beside the other
caches (`lavapipe-sid`, 400 MB; without it, today's is fetched); nothing is installed. The runtime runs with sid's C
library. --all: every family, too, for hours.
"""

from __future__ import annotations

import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from edgellm import cache, virtual_parts
from edgellm.errors import EdgeError
from tests.shaders import ELSEWHERE

PACKAGES = ("mesa-vulkan-drivers", "libvulkan1", "libstdc++6", "libgcc-s1")
TESTS = ("tests/compile/test_vulkan_matrix.py", "tests/compile/test_vulkan_matrix_attention.py")
FAMILIES = "tests/compile/test_vulkan_matrix_families.py"
_COMMAND = """#!/bin/sh
export VK_DRIVER_FILES={root}/lvp.json VK_ICD_FILENAMES={root}/lvp.json
exec {libraries}/ld-linux-x86-64.so.2 --library-path {libraries} "$@"
"""
_DRIVER = {"file_format_version": "1.0.1", "ICD": {"api_version": "1.4.0", "library_path": "libvulkan_lvp.so"}}


def fetch() -> Path:
    """The command that runs a program with sid's lavapipe; fetched if it is not here."""
    root = cache.root() / "lavapipe-sid"
    command, libraries = root / "run", root / "usr" / "lib" / "x86_64-linux-gnu"
    if command.exists():
        return command
    print("fetching lavapipe of Debian sid (100 MB)", flush=True)
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir(parents=True)
    with virtual_parts._private_apt("amd64", ["sid"], lambda what, fraction: None) as apt:
        apt._apt(["install", "--download-only", "--no-install-recommends", *PACKAGES], "fetching lavapipe")
        for package in sorted((apt._folder / "cache" / "archives").glob("*.deb")):
            subprocess.run(["dpkg-deb", "-x", str(package), str(root)], check=True)
    (root / "lvp.json").write_text(json.dumps(_DRIVER))
    command.write_text(_COMMAND.format(root=shlex.quote(str(root)), libraries=shlex.quote(str(libraries))))
    command.chmod(0o755)
    return command


def main(arguments: list[str]) -> int:
    reason = virtual_parts.missing_tool() if platform.machine() == "x86_64" else "sid's lavapipe is run on x86-64 alone"
    if reason is not None:
        print(f"matrices: {reason}")
        return 1
    every = "--all" in arguments
    rest = [each for each in arguments if each != "--all"]
    tests, marked = ((*TESTS, FAMILIES), "oracle or not oracle") if every else (TESTS, "not oracle")
    argv = [sys.executable, "-m", "pytest", "-m", marked, "--timeout", "0", *tests, *rest]
    try:
        environment = {**os.environ, ELSEWHERE: str(fetch())}
    except (EdgeError, OSError, subprocess.CalledProcessError) as error:
        print(f"matrices: {error}; run this again with a mirror of Debian in reach and 500 MB free")
        return 1
    return subprocess.run(argv, env=environment, check=False).returncode


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
