"""Which GPU this machine has, asked of Vulkan in a process of its own: drivers bring a compiler along."""

from __future__ import annotations

import ctypes
import subprocess
import sys

PROCESSOR, DESKTOP = "processor", "desktop"

_CPU = 4  # VK_PHYSICAL_DEVICE_TYPE_CPU
_TYPE_AT, _NAME_AT = 16, 20  # of deviceType and deviceName in VkPhysicalDeviceProperties, which has 824 bytes
_PROPERTIES_BYTES = 1024
_MOST = 16


def schedule() -> str:
    """The class in crosscompile/gpu/schedules.py: "processor" where Vulkan finds nothing but processors.

    A driver that crashes or does not answer counts as a GPU's.
    """
    kinds = {kind for kind, _ in _devices()}
    return PROCESSOR if kinds == {_CPU} else DESKTOP


def names() -> str:
    """What Vulkan finds here, by name: GPUs, or processors where there is nothing else."""
    found = _devices()
    gpus = [name for kind, name in found if kind != _CPU]
    return " + ".join(sorted(gpus or [name for _, name in found])) or "nothing"


def _devices() -> list[tuple[int, str]]:
    """VkPhysicalDeviceType and name of every device; none where the driver does not answer."""
    try:
        argv = [sys.executable, "-IS", __file__]
        done = subprocess.run(argv, capture_output=True, text=True, errors="replace", check=False, timeout=60)
    except subprocess.TimeoutExpired:
        return []
    lines = [line.partition(" ") for line in done.stdout.splitlines()] if done.returncode == 0 else []
    return [(int(kind), name) for kind, _, name in lines if kind.isdecimal()]


class _InstanceInfo(ctypes.Structure):
    """VkInstanceCreateInfo without layers, extensions and application."""

    _fields_ = (
        ("type", ctypes.c_uint32),
        ("next", ctypes.c_void_p),
        ("flags", ctypes.c_uint32),
        ("application", ctypes.c_void_p),
        ("n_layers", ctypes.c_uint32),
        ("layers", ctypes.c_void_p),
        ("n_extensions", ctypes.c_uint32),
        ("extensions", ctypes.c_void_p),
    )


def _ask() -> list[tuple[int, str]]:
    """VkPhysicalDeviceType and name of every device."""
    vulkan = ctypes.CDLL("libvulkan.so.1")
    info, instance = _InstanceInfo(type=1), ctypes.c_void_p()
    if vulkan.vkCreateInstance(ctypes.byref(info), None, ctypes.byref(instance)) != 0:
        return []
    count, devices = ctypes.c_uint32(_MOST), (ctypes.c_void_p * _MOST)()
    if vulkan.vkEnumeratePhysicalDevices(instance, ctypes.byref(count), devices) < 0:
        return []
    found = []
    for device in devices[: count.value]:
        properties = ctypes.create_string_buffer(_PROPERTIES_BYTES)
        vulkan.vkGetPhysicalDeviceProperties(ctypes.c_void_p(device), properties)
        name = properties.raw[_NAME_AT:].partition(b"\0")[0].decode("utf-8", "replace")
        found.append((ctypes.c_uint32.from_buffer(properties, _TYPE_AT).value, " ".join(name.split())))
    return found


if __name__ == "__main__":
    sys.stdout.write("".join(f"{kind} {name}\n" for kind, name in _ask()))
