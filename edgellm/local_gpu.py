"""Which GPU this machine has, asked by the runtime in a process of its own: drivers bring a compiler, and may crash."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path

from crosscompile.target import Target
from edgellm import gpu_facts
from edgellm.errors import CommandError
from edgellm.gpu_facts import DESKTOP, Device, VulkanSection

_TIMEOUT_S = 60


def found(section: VulkanSection, target: Target) -> VulkanSection:
    """The section with what this machine's driver says. target: this machine's, with a GPU.

    A program that imitates a GPU counts where there is no GPU, as the runtime takes it then. A driver that crashes or
    does not answer counts as a GPU's, which allows the least.
    """
    devices = _devices(target)
    device = gpu_facts.chosen(devices) or next((each for each in devices if each.lacks is None), None)
    if device is None:
        return replace(section, device="nothing", schedule=DESKTOP)
    return gpu_facts.asked(section, device)


def program(target: Target) -> Path:
    """The runtime for `target`, built if it is not in the cache."""
    from crosscompile.runtime import build_runtime
    from edgellm import cache

    return build_runtime(target, cache=cache.root() / "runtime")


def _devices(target: Target) -> list[Device]:
    """What there is; nothing where the driver does not answer."""
    from crosscompile.runtime import has_vulkan

    if not has_vulkan(target):
        return []
    argv = [str(program(target)), "gpus"]
    try:
        done = subprocess.run(argv, capture_output=True, check=False, timeout=_TIMEOUT_S)
        return gpu_facts.read(done.stdout.decode("utf-8", "replace"), "local") if done.returncode == 0 else []
    except (OSError, subprocess.TimeoutExpired, CommandError):
        return []
