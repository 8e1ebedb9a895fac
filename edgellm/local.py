"""What this machine is, as the sections of a board manifest: read from /proc."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

_ARCHES = {"x86_64": "x86_64", "amd64": "x86_64", "aarch64": "aarch64", "arm64": "aarch64"}


def describe(cpuinfo: str | None = None, meminfo: str | None = None, machine: str | None = None) -> dict[str, Any]:
    """The [target] and [memory] sections of this machine.

    cpuinfo, meminfo: text of /proc/cpuinfo and /proc/meminfo; machine: what uname calls the architecture.
    Features are those that every core has. An unknown architecture is passed on as it is, for the manifest's checks
    to refuse by name.
    """
    cpuinfo = Path("/proc/cpuinfo").read_text() if cpuinfo is None else cpuinfo
    meminfo = Path("/proc/meminfo").read_text() if meminfo is None else meminfo
    machine = machine or platform.machine()
    pairs = [tuple(part.strip() for part in line.split(":", 1)) for line in cpuinfo.splitlines() if ":" in line]
    features = [set(value.split()) for key, value in pairs if key in ("flags", "Features")]
    common = set.intersection(*features) if features else set()
    names = [value for key, value in pairs if key == "model name"]
    kilobytes = next(int(line.split()[1]) for line in meminfo.splitlines() if line.startswith("MemTotal:"))
    return {
        "target": {
            "arch": "armv7" if machine.startswith("armv") else _ARCHES.get(machine, machine),
            "cpu": names[0] if names else machine,
            "cpu_features": sorted(common),
            "n_cores": len(os.sched_getaffinity(0)),
        },
        "memory": {"ram_bytes": kilobytes * 1024, "page_bytes": os.sysconf("SC_PAGESIZE")},
    }
