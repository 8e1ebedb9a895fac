"""The stand-in for Intel's GPUs (runtime_c/probe/i915.c) takes and refuses memory as the kernel does that it plays."""

from __future__ import annotations

import ctypes
import errno
import mmap
import struct
from pathlib import Path

import pytest

from tests.drivers import CHIPS, OURS, build

GETPARAM, USERPTR, EXECBUFFER2 = 0xC0106446, 0xC0186473, 0x40406469  # i915_drm.h
CHIPSET_ID, PROBE = 4, 2
N100 = CHIPS["intel-n100"]


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ctypes.CDLL:
    for name, value in N100.variables.items():
        monkeypatch.setenv(name, value)
    build(OURS, N100.arch, tmp_path / "libi915.so")
    return ctypes.CDLL(str(tmp_path / "libi915.so"), use_errno=True)


def asked(kernel: ctypes.CDLL, request: int, argument: ctypes.Array[ctypes.c_char]) -> int:
    """0 or the number of an error."""
    return ctypes.get_errno() if kernel.ioctl(-1, ctypes.c_ulong(request), argument) != 0 else 0


def submitted(kernel: ctypes.CDLL, address: int) -> int:
    """What comes of a submission that uses a page of this process's, which was taken: 0 or the number of an error."""
    page = ctypes.create_string_buffer(struct.pack("QQII", address, mmap.PAGESIZE, PROBE, 0), 24)
    assert asked(kernel, USERPTR, page) == 0
    (handle,) = struct.unpack_from("I", page.raw, 20)
    used = ctypes.create_string_buffer(struct.pack("I", handle), 56)
    return asked(kernel, EXECBUFFER2, ctypes.create_string_buffer(struct.pack("QI", ctypes.addressof(used), 1), 64))


def test_pages_that_cannot_be_written_are_taken_and_refused_when_they_are_used(kernel: ctypes.CDLL, tmp_path: Path):
    number = ctypes.c_int()
    parameter = struct.pack("iQ", CHIPSET_ID, ctypes.addressof(number))
    assert asked(kernel, GETPARAM, ctypes.create_string_buffer(parameter, 16)) == 0
    assert number.value == int(N100.variables["I915_GPU_ID"], 16)
    (tmp_path / "weights").write_bytes(bytes(mmap.PAGESIZE))
    c = ctypes.CDLL(None)
    c.mmap.restype = ctypes.c_void_p
    with (tmp_path / "weights").open("r+b") as file:
        for writable, error in ((mmap.PROT_WRITE, 0), (0, errno.EFAULT)):
            protection = mmap.PROT_READ | writable
            at = c.mmap(None, mmap.PAGESIZE, protection, mmap.MAP_SHARED, file.fileno(), ctypes.c_long(0))
            assert submitted(kernel, at) == error
            c.munmap(ctypes.c_void_p(at), ctypes.c_size_t(mmap.PAGESIZE))
