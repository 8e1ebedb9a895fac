"""Kernels for matrix units, where Debian's own lavapipe has none: with that of Debian sid, whose matrices are 8 x 8.

    python -m tests.campaigns.matrices [--all] [PYTEST ARGUMENTS]

It is fetched (tests/drivers.py; 350 MB beside the other caches), and the runtime runs with its C library. --all: all
families, too, for hours.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys

from edgellm import virtual_parts
from edgellm.errors import EdgeError
from tests.drivers import LAVAPIPE, command
from tests.shaders import ELSEWHERE

TESTS = ("tests/compile/test_vulkan_matrix.py", "tests/compile/test_vulkan_matrix_attention.py")
FAMILIES = "tests/compile/test_vulkan_matrix_families.py"


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
        environment = {**os.environ, ELSEWHERE: str(command(LAVAPIPE))}
    except (EdgeError, OSError, subprocess.CalledProcessError) as error:
        print(f"matrices: {error}; run this again with a mirror of Debian in reach and 500 MB free")
        return 1
    return subprocess.run(argv, env=environment, check=False).returncode


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
