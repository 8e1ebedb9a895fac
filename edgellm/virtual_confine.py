"""Runs a command that may make no hard links, as Android's SELinux has it: `python -IS virtual_confine.py COMMAND…`.

A seccomp filter answers link and linkat with EACCES (seccomp(2); numbers from the kernel's unistd.h). The policy of
AOSP (system/sepolicy, shell.te) lets adb's shell write to /data/local/tmp, but not link there.
"""

import ctypes
import errno
import os
import platform
import struct
import sys

_SYSTEMS = {"x86_64": (0xC000003E, (86, 265)), "aarch64": (0xC00000B7, (37,))}
"""AUDIT_ARCH of linux/audit.h, and the numbers of link and linkat."""

_LOAD, _EQUAL, _RETURN = 0x20, 0x15, 0x06  # BPF_LD|BPF_W|BPF_ABS, BPF_JMP|BPF_JEQ|BPF_K, BPF_RET|BPF_K
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000
_NO_NEW_PRIVS, _SECCOMP, _FILTER = 38, 22, 2


def main() -> None:
    """Entry point; ends with exec, or with a message."""
    system = _SYSTEMS.get(platform.machine())
    if system is None:
        sys.exit(f"no filter is known for {platform.machine()}")
    audit, numbers = system
    # seccomp_data: the call's number at byte 0, the architecture at byte 4.
    program = [(_LOAD, 0, 0, 4), (_EQUAL, 0, len(numbers) + 1, audit), (_LOAD, 0, 0, 0)]
    program += [(_EQUAL, len(numbers) - i, 0, number) for i, number in enumerate(numbers)]
    program += [(_RETURN, 0, 0, _ALLOW), (_RETURN, 0, 0, _ERRNO | errno.EACCES)]
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *step) for step in program))
    filter_program = struct.pack("@HP", len(program), ctypes.addressof(code))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_NO_NEW_PRIVS, 1, 0, 0, 0) or libc.prctl(_SECCOMP, _FILTER, filter_program):
        sys.exit(f"seccomp: {os.strerror(ctypes.get_errno())}")
    os.execvp(sys.argv[1], sys.argv[1:])


if __name__ == "__main__":
    main()
