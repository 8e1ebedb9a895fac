"""Which GPU this machine has, asked of Vulkan in a process of its own: drivers bring a compiler along."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from dataclasses import dataclass

PROCESSOR, DESKTOP = "processor", "desktop"

_CPU = 4  # VK_PHYSICAL_DEVICE_TYPE_CPU
# of deviceType, deviceName and limits.maxPerStageDescriptorStorageBuffers in VkPhysicalDeviceProperties (824 bytes)
_TYPE_AT, _NAME_AT, _BUFFERS_AT = 16, 20, 296 + 76
_PROPERTIES_BYTES = 1024
_MOST = 16


def found(least: int, most: int) -> tuple[str, int]:
    """(class in crosscompile/gpu/schedules.py, storage buffers of a kernel), from `least` to `most` of them.

    The class is "processor" where Vulkan finds nothing but processors. A driver that crashes or does not answer counts
    as a GPU's, which binds the fewest.
    """
    devices = _devices()
    kinds = {device.kind for device in devices}
    buffers = min((device.buffers for device in devices), default=least)
    return PROCESSOR if kinds == {_CPU} else DESKTOP, max(least, min(buffers, most))


def names() -> str:
    """What Vulkan finds here, by name: GPUs, or processors where there is nothing else."""
    devices = _devices()
    gpus = [device.name for device in devices if device.kind != _CPU]
    return " + ".join(sorted(gpus or [device.name for device in devices])) or "nothing"


@dataclass(frozen=True)
class _Device:
    """VkPhysicalDeviceType, storage buffers of a kernel, and name."""

    kind: int
    buffers: int
    name: str


def _devices() -> list[_Device]:
    """What there is; nothing where the driver does not answer."""
    try:
        argv = [sys.executable, "-IS", __file__]
        done = subprocess.run(argv, capture_output=True, text=True, errors="replace", check=False, timeout=60)
    except subprocess.TimeoutExpired:
        return []
    lines = [line.split(" ", 2) for line in done.stdout.splitlines()] if done.returncode == 0 else []
    read = [line for line in lines if len(line) == 3 and line[0].isdecimal() and line[1].isdecimal()]
    return [_Device(int(kind), int(buffers), name) for kind, buffers, name in read]


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


def _ask() -> list[_Device]:
    """Every device."""
    vulkan = ctypes.CDLL("libvulkan.so.1")
    info, instance = _InstanceInfo(type=1), ctypes.c_void_p()
    if vulkan.vkCreateInstance(ctypes.byref(info), None, ctypes.byref(instance)) != 0:
        return []
    count, devices = ctypes.c_uint32(_MOST), (ctypes.c_void_p * _MOST)()
    if vulkan.vkEnumeratePhysicalDevices(instance, ctypes.byref(count), devices) < 0:
        return []
    made = []
    for device in devices[: count.value]:
        properties = ctypes.create_string_buffer(_PROPERTIES_BYTES)
        vulkan.vkGetPhysicalDeviceProperties(ctypes.c_void_p(device), properties)
        name = properties.raw[_NAME_AT:].partition(b"\0")[0].decode("utf-8", "replace")
        kind, buffers = (ctypes.c_uint32.from_buffer(properties, at).value for at in (_TYPE_AT, _BUFFERS_AT))
        made.append(_Device(kind, buffers, " ".join(name.split())))
    return made


if __name__ == "__main__":
    sys.stdout.write("".join(f"{each.kind} {each.buffers} {each.name}\n" for each in _ask()))
