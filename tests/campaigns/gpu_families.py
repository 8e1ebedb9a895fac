"""Networks of all families where a GPU's kernels are looked at more closely than on lavapipe alone.

    python -m tests.campaigns.gpu_families swiftshader|bounds [FAMILY …] [--schemes w4a8,"w8a8 i8"] [--classes mali]

swiftshader: on Chromium's imitation of a GPU, whose compiler has nothing in common with Mesa's, which stands behind all
other drivers that compute here. Subgroups have four invocations there, buffers lie at multiples of 256 bytes, and
values of 8 and 16 bits are parts of words.

bounds: on lavapipe, with the Khronos validation layers' instrumented kernels: each access is within what is bound, and
whatever else the layers of Debian's Chromium, which are newer than Debian's own, have to say.

Logits are the processor's, within the tolerance. Schemes take turns, and so do the classes of GPUs whose kernels run.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from crosscompile.errors import CompileError
from crosscompile.gpu.schedules import SCHEDULES
from crosscompile.models.schemes import scheme_for
from tests.compile.test_vulkan_families import RECURRENT, check
from tests.oracle.family_configurations import FAMILIES
from tests.shaders import DESKTOP, WORDS, bounds_checked, swiftshader

SCHEMES = ("w4a8 i8", "w8a8", "f16")
WHERE = {"swiftshader": (WORDS, swiftshader), "bounds": (DESKTOP, bounds_checked)}


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="gpu_families", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("where", choices=WHERE)
    parser.add_argument("families", nargs="*", metavar="FAMILY", help="default: all that tests have")
    parser.add_argument("--schemes", default=",".join(SCHEMES), help="taken in turn, one for each family")
    parser.add_argument("--classes", default=",".join(SCHEDULES), help=f"of {', '.join(SCHEDULES)}, in turn")
    args = parser.parse_intermixed_args(arguments)
    schemes, classes = args.schemes.split(","), args.classes.split(",")
    if unknown := sorted({*args.families} - {*FAMILIES}):
        parser.error(f"there is no {unknown[0]}; there are {', '.join(FAMILIES)}")
    if unknown := sorted({*classes} - {*SCHEDULES}):
        parser.error(f"--classes: there is no {unknown[0]}; there are {', '.join(SCHEDULES)}")
    gpu, environment = WHERE[args.where]
    try:
        env = environment()
        for scheme in schemes:
            scheme_for(scheme.partition(" ")[0], kv=scheme.partition(" ")[2] or None)
    except (pytest.skip.Exception, CompileError) as error:
        parser.error(str(error))
    failed = 0
    for i, name in enumerate(args.families or FAMILIES):
        scheme, schedule = schemes[i % len(schemes)], classes[i // len(schemes) % len(classes)]
        if name.startswith(RECURRENT):
            scheme = scheme.partition(" ")[0]  # a state instead of a cache
        start = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="edgellm-families-") as folder:
            try:
                check(name, scheme, Path(folder), replace(gpu, schedule=schedule, mixed=schedule == "adreno"), env)
                said = "within the tolerance"
            except (AssertionError, subprocess.TimeoutExpired) as error:
                failed += 1
                said = str(error).strip()[:600]
        print(f"{name:24} {scheme:8} {schedule:10} {time.monotonic() - start:5.0f} s  {said}", flush=True)
    print(f"{failed} failed", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
