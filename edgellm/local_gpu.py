"""Which GPU this machine has, asked of Vulkan in a process of its own: drivers bring a compiler along."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from dataclasses import astuple, dataclass, fields

PROCESSOR, DESKTOP = "processor", "desktop"

_CPU = 4  # VK_PHYSICAL_DEVICE_TYPE_CPU
# in VkPhysicalDeviceProperties, which has 824 bytes
_TYPE_AT, _NAME_AT, _LIMITS_AT = 16, 20, 296
_RANGE_AT, _BUFFERS_AT, _SHARED_AT, _INVOCATIONS_AT, _WIDTH_AT = (_LIMITS_AT + at for at in (28, 76, 216, 232, 236))
_PROPERTIES_BYTES = 1024
_MOST = 16


@dataclass(frozen=True)
class Limits:
    """Of a kernel: threads of a workgroup, its shared memory, storage buffers, and the largest part of one."""

    invocations: int
    shared_bytes: int
    buffers: int
    binding_bytes: int


def found(least: Limits) -> tuple[str, Limits]:
    """(class in crosscompile/gpu/schedules.py, what all devices allow, which is `least` or more).

    The class is "processor" where Vulkan finds nothing but processors. A driver that crashes or does not answer counts
    as a GPU's, which allows the least.
    """
    devices = _devices()
    kinds = {device.kind for device in devices}
    allowed = [astuple(device.limits) for device in devices] or [astuple(least)]
    limits = (max(own, min(theirs)) for own, theirs in zip(astuple(least), zip(*allowed, strict=True), strict=True))
    return PROCESSOR if kinds == {_CPU} else DESKTOP, Limits(*limits)


def names() -> str:
    """What Vulkan finds here, by name: GPUs, or processors where there is nothing else."""
    devices = _devices()
    gpus = [device.name for device in devices if device.kind != _CPU]
    return " + ".join(sorted(gpus or [device.name for device in devices])) or "nothing"


@dataclass(frozen=True)
class _Device:
    """kind: VkPhysicalDeviceType."""

    kind: int
    limits: Limits
    name: str


_NUMBERS = 1 + len(fields(Limits))


def _devices() -> list[_Device]:
    """What there is; nothing where the driver does not answer."""
    try:
        argv = [sys.executable, "-IS", __file__]
        done = subprocess.run(argv, capture_output=True, text=True, errors="replace", check=False, timeout=60)
    except subprocess.TimeoutExpired:
        return []
    read = []
    for line in done.stdout.splitlines() if done.returncode == 0 else []:
        *numbers, name = line.split(" ", _NUMBERS)
        if len(numbers) == _NUMBERS and all(number.isdecimal() for number in numbers):
            kind, *limits = map(int, numbers)
            read.append(_Device(kind, Limits(*limits), name))
    return read


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
        places = _TYPE_AT, _INVOCATIONS_AT, _WIDTH_AT, _SHARED_AT, _BUFFERS_AT, _RANGE_AT
        kind, invocations, width, *rest = (ctypes.c_uint32.from_buffer(properties, at).value for at in places)
        made.append(_Device(kind, Limits(min(invocations, width), *rest), " ".join(name.split())))
    return made


if __name__ == "__main__":
    for each in _ask():
        sys.stdout.write(" ".join(map(str, (each.kind, *astuple(each.limits), each.name))) + "\n")
