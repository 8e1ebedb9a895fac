"""Which GPU this machine has, asked of Vulkan in a process of its own: drivers bring a compiler along."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from dataclasses import astuple, dataclass, fields, replace
from typing import Any

PROCESSOR, DESKTOP = "processor", "desktop"

_CPU = 4  # VK_PHYSICAL_DEVICE_TYPE_CPU
# in VkPhysicalDeviceProperties, which has 824 bytes
_VENDOR_AT, _TYPE_AT, _NAME_AT, _LIMITS_AT = 8, 16, 20, 296
_RANGE_AT, _BUFFERS_AT, _SHARED_AT, _INVOCATIONS_AT, _WIDTH_AT = (_LIMITS_AT + at for at in (28, 76, 216, 232, 236))
_PROPERTIES_BYTES = 1024
_MOST, _MOST_MATRICES = 16, 64
_EXTENSION_BYTES = 260  # VkExtensionProperties
_VERSION_1_3 = 1 << 22 | 3 << 12
_NVIDIA = 0x10DE
"""Whose matrix units are used unasked. Drivers of AMD and Intel also multiply matrices on GPUs that have no such units
(llama.cpp, pull request 10597), and nobody has measured theirs here; a board's manifest may name them."""


@dataclass(frozen=True)
class Limits:
    """Of a kernel: threads of a workgroup, its shared memory, storage buffers, and the largest part of one.

    subgroup: invocations of a subgroup that multiplies f16 matrices of 16 x 16, summed in f32; 0: none does.
    """

    invocations: int
    shared_bytes: int
    buffers: int
    binding_bytes: int
    subgroup: int = 0


def found(least: Limits) -> tuple[str, Limits]:
    """(class in crosscompile/gpu/schedules.py, what all GPUs allow, which is `least` or more).

    The class is "processor" where Vulkan finds nothing but processors that imitate a GPU: beside a GPU they do not
    count, as the runtime does not take them then. A driver that crashes or does not answer counts as a GPU's, which
    allows the least.
    """
    devices = _devices()
    gpus = [device for device in devices if device.kind != _CPU]
    subgroups = {gpu.limits.subgroup if gpu.vendor == _NVIDIA else 0 for gpu in gpus}
    matrices = subgroups.pop() if len(subgroups) == 1 else 0
    allowed = [astuple(device.limits) for device in gpus or devices] or [astuple(least)]
    limits = (max(own, min(theirs)) for own, theirs in zip(astuple(least), zip(*allowed, strict=True), strict=True))
    return PROCESSOR if devices and not gpus else DESKTOP, replace(Limits(*limits), subgroup=matrices)


def names() -> str:
    """What Vulkan finds here, by name: GPUs, or processors where there is nothing else."""
    devices = _devices()
    gpus = [device.name for device in devices if device.kind != _CPU]
    return " + ".join(sorted(gpus or [device.name for device in devices])) or "nothing"


@dataclass(frozen=True)
class _Device:
    """kind: VkPhysicalDeviceType. limits: as the driver says, its subgroup too."""

    kind: int
    vendor: int
    limits: Limits
    name: str


_NUMBERS = 2 + len(fields(Limits))


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
            kind, vendor, *limits = map(int, numbers)
            read.append(_Device(kind, vendor, Limits(*limits), name))
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


class _ApplicationInfo(ctypes.Structure):
    """VkApplicationInfo: which version of Vulkan is asked for."""

    _fields_ = (
        ("type", ctypes.c_uint32),
        ("next", ctypes.c_void_p),
        ("name", ctypes.c_char_p),
        ("version", ctypes.c_uint32),
        ("engine", ctypes.c_char_p),
        ("engine_version", ctypes.c_uint32),
        ("api", ctypes.c_uint32),
    )


class _Matrices(ctypes.Structure):
    """VkCooperativeMatrixPropertiesKHR: rows and columns, types of what is multiplied and summed, and by whom."""

    _fields_ = (
        ("type", ctypes.c_uint32),
        ("next", ctypes.c_void_p),
        ("shape", ctypes.c_uint32 * 3),
        ("types", ctypes.c_uint32 * 4),
        ("saturates", ctypes.c_uint32),
        ("scope", ctypes.c_uint32),
    )


def _subgroup(vulkan: Any, instance: ctypes.c_void_p, device: ctypes.c_void_p, version: int) -> int:
    """Invocations of a subgroup that multiplies the matrices of kernels (crosscompile/gpu/linear_matrix.py), or 0.

    What else these take, Vulkan 1.3 has.
    """
    vulkan.vkGetInstanceProcAddr.restype = ctypes.c_void_p
    found = vulkan.vkGetInstanceProcAddr(instance, b"vkGetPhysicalDeviceCooperativeMatrixPropertiesKHR")
    count = ctypes.c_uint32()
    if version < _VERSION_1_3 or not found:
        return 0
    vulkan.vkEnumerateDeviceExtensionProperties(device, None, ctypes.byref(count), None)
    names = ctypes.create_string_buffer(_EXTENSION_BYTES * count.value)
    vulkan.vkEnumerateDeviceExtensionProperties(device, None, ctypes.byref(count), names)
    if b"VK_KHR_cooperative_matrix\0" not in names.raw:
        return 0
    ask = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p)(found)
    count = ctypes.c_uint32(_MOST_MATRICES)
    matrices = (_Matrices * _MOST_MATRICES)(*[_Matrices(type=1000506001)] * _MOST_MATRICES)
    if ask(device, ctypes.byref(count), matrices) < 0:
        return 0
    wanted = [16, 16, 16], [0, 0, 1, 1], 0, 3  # f16, f16, f32 and f32, of a subgroup
    if not any((list(m.shape), list(m.types), m.saturates, m.scope) == wanted for m in matrices[: count.value]):
        return 0
    subgroup = (ctypes.c_uint32 * 8)(1000094000)  # VkPhysicalDeviceSubgroupProperties
    both = ctypes.create_string_buffer(16 + _PROPERTIES_BYTES)
    ctypes.c_uint32.from_buffer(both).value = 1000059001  # VkPhysicalDeviceProperties2
    ctypes.c_void_p.from_buffer(both, 8).value = ctypes.addressof(subgroup)
    vulkan.vkGetPhysicalDeviceProperties2(device, both)
    return subgroup[4]


def _ask() -> list[_Device]:
    """Every device."""
    vulkan = ctypes.CDLL("libvulkan.so.1")
    application = _ApplicationInfo(api=_VERSION_1_3)
    info, instance = _InstanceInfo(type=1, application=ctypes.addressof(application)), ctypes.c_void_p()
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
        places = 0, _VENDOR_AT, _TYPE_AT, _INVOCATIONS_AT, _WIDTH_AT, _SHARED_AT, _BUFFERS_AT, _RANGE_AT
        version, vendor, kind, invocations, width, shared, buffers, binding = (
            ctypes.c_uint32.from_buffer(properties, at).value for at in places
        )
        subgroup = _subgroup(vulkan, instance, ctypes.c_void_p(device), version)
        limits = Limits(min(invocations, width), shared, buffers, binding, subgroup)
        made.append(_Device(kind, vendor, limits, " ".join(name.split())))
    return made


if __name__ == "__main__":
    for each in _ask():
        sys.stdout.write(" ".join(map(str, (each.kind, each.vendor, *astuple(each.limits), each.name))) + "\n")
