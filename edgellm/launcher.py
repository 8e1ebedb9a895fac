"""Runs a command for edgellm.sample, in a process of its own that is small: `python -IS launcher.py OUT ERR COMMAND…`.

Linux counts a parent's memory into the peak of a child that it starts, so the parent must be smaller than any child.
Standard output gets one JSON object: exit status, seconds, peak memory, and what the other processes used meanwhile.
"""

import json
import os
import sys
import time


def busy_s() -> float:
    """Seconds that all processors together have spent working or were kept from it, since the start."""
    with open("/proc/stat") as stream:
        fields = [int(field) for field in stream.readline().split()[1:9]]
    return (sum(fields) - fields[3] - fields[4]) / os.sysconf("SC_CLK_TCK")


def main() -> int:
    """Entry point. 0: it ran, however it ended; 1: it could not be started."""
    out, err, *command = sys.argv[1:]
    files = [(os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0)]
    files += [(os.POSIX_SPAWN_OPEN, fd, name, os.O_WRONLY | os.O_CREAT, 0o600) for fd, name in ((1, out), (2, err))]
    before, start = busy_s(), time.monotonic()
    try:
        pid = os.posix_spawn(command[0], command, os.environ, file_actions=files)
    except OSError as error:
        sys.stdout.write(str(error.strerror))
        return 1
    _, status, usage = os.wait4(pid, 0)
    wall = time.monotonic() - start
    other = max(0.0, (busy_s() - before - usage.ru_utime - usage.ru_stime) / wall)
    answer = {"status": os.waitstatus_to_exitcode(status), "wall_s": wall, "other_cpu": other}
    memory = {"peak_rss_bytes": usage.ru_maxrss * 1024, "major_faults": usage.ru_majflt}
    sys.stdout.write(json.dumps({**answer, **memory}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
