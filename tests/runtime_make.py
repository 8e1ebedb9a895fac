"""runtime_c's own Makefile, called by tests: one at a time, for two would write the same files."""

from __future__ import annotations

import fcntl
import os
import subprocess
from pathlib import Path

RUNTIME_C = Path(__file__).resolve().parents[1] / "runtime_c"


def make(*arguments: str) -> str:
    """What it prints. AssertionError with all of it if it fails."""
    (RUNTIME_C / "build").mkdir(exist_ok=True)
    with (RUNTIME_C / "build" / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        jobs = f"-j{os.cpu_count()}"  # whoever else wants something made waits
        command = ["make", "--silent", "--no-print-directory", jobs, "-C", str(RUNTIME_C), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def build(name: str) -> Path:
    """What is made of one name, by its path in runtime_c/build, where it is kept."""
    make(f"build/{name}")
    return RUNTIME_C / "build" / name
