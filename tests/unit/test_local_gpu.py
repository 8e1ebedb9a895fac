"""What `--board local` concludes of a driver's answer, which a stand-in for Python prints here.

How a real driver is asked: tests/compile/test_vulkan.py and test_vulkan_matrix.py.
"""

from __future__ import annotations

import stat
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from edgellm import local_gpu
from edgellm.local_gpu import DESKTOP, PROCESSOR, Limits

Answers = Callable[..., None]
LEAST = Limits(256, 16384, 8, 128 << 20)
# type of device and vendor, then Limits but for the subgroup
GPU, OTHER = "2 4318 1024 49152 16 4294967295", "1 4318 512 32768 12 1073741824"
AMD, CPU = "2 4098 1024 49152 16 4294967295", "4 65541 1024 32768 32 134217728"


@pytest.fixture
def answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Answers:
    """Makes the process that asks the driver print these lines."""

    def prepare(*lines: str, code: int = 0) -> None:
        (tmp_path / "lines").write_bytes("".join(f"{line}\n" for line in lines).encode("latin-1"))
        program = tmp_path / "python"
        program.write_text(f"#!/bin/sh\ncat '{tmp_path}/lines'\nexit {code}\n")
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setattr(sys, "executable", str(program))

    return prepare


def test_a_gpu_with_matrix_units_gets_their_subgroup(answers: Answers):
    answers(f"{GPU} 32 NVIDIA H100 80GB HBM3")
    assert local_gpu.found(LEAST) == (DESKTOP, Limits(1024, 49152, 16, 4294967295, 32))
    assert local_gpu.names() == "NVIDIA H100 80GB HBM3"


def test_a_gpu_without_has_no_subgroup(answers: Answers):
    answers(f"{GPU} 0 Some GPU")
    assert local_gpu.found(LEAST) == (DESKTOP, Limits(1024, 49152, 16, 4294967295, 0))


def test_a_processor_counts_only_where_there_is_no_gpu(answers: Answers):
    """And its matrices never do: they are slow."""
    answers(f"{CPU} 8 llvmpipe")
    assert local_gpu.found(LEAST) == (PROCESSOR, Limits(1024, 32768, 32, 134217728, 0))
    answers(f"{GPU} 32 One", f"{CPU} 0 llvmpipe")
    assert local_gpu.found(LEAST) == (DESKTOP, Limits(1024, 49152, 16, 4294967295, 32))
    assert local_gpu.names() == "One"


def test_matrices_of_others_than_nvidia_are_not_used_unasked(answers: Answers):
    """Their drivers multiply them on GPUs that have no units for it, too."""
    answers(f"{AMD} 64 AMD Radeon")
    assert local_gpu.found(LEAST) == (DESKTOP, Limits(1024, 49152, 16, 4294967295, 0))


def test_gpus_that_differ_get_none(answers: Answers):
    answers(f"{GPU} 32 One", f"{OTHER} 0 Two")
    assert local_gpu.found(LEAST) == (DESKTOP, Limits(512, 32768, 12, 1073741824, 0))
    answers(f"{GPU} 32 One", f"{OTHER} 64 Two")
    assert local_gpu.found(LEAST)[1].subgroup == 0
    answers(f"{GPU} 32 One", f"{OTHER} 32 Two")
    assert local_gpu.found(LEAST)[1].subgroup == 32


def test_what_is_no_answer_counts_as_a_gpu_that_allows_the_least(answers: Answers):
    for lines in ((), ("ERROR: something",), (f"{GPU} Name",), (f"{GPU} -32 Name",), (f"{GPU} 32",), ("\xff\xfe 1 2",)):
        answers(*lines)
        assert local_gpu.found(LEAST) == (DESKTOP, LEAST), lines
    answers(f"{GPU} 32 Crashed", code=139)
    assert local_gpu.found(LEAST) == (DESKTOP, LEAST)
    assert local_gpu.names() == "nothing"
