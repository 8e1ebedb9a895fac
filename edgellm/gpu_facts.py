"""What is known of a board's GPU: its manifest's [vulkan] section or, in its place, what its driver says there.

A driver is asked by `edgellm-rt gpus` on the board, so by the program that will open the GPU, and in the order in which
it takes devices. What it prints is untrusted.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from crosscompile.spirv.capabilities import Gpu
from edgellm.errors import CommandError
from edgellm.terminal import one_line

FOUND = "found"
"""Of a GPU's schedule: that of this machine's."""
SUBGROUPS = (8, 16, 32, 64, 128)
"""Invocations that they have, of GPUs with matrix units."""

PROCESSOR, DESKTOP = "processor", "desktop"
_CLASSES = {0x5143: "adreno", 0x13B5: "mali", 0x14E4: "v3d", 0x8086: "intel"}
"""Of schedules, by the maker: Qualcomm, Arm, Broadcom, Intel. Others are as desktops' are."""
_NVIDIA = 0x10DE
"""Whose matrix units are used unasked. Drivers of AMD and Intel also multiply matrices on GPUs that have no such units
(llama.cpp, pull request 10597), and nobody has measured theirs here; a board's manifest may name them."""

_WITHOUT_SUMS = ("mali", "v3d")
"""Classes for which sums over subgroups are worse than through shared memory: PanVK makes so much code of each that
attention of a row took it thirty times as long to compile, and went to memory 845 times for want of registers instead
of 103; V3DV 147 times instead of 95."""
SUMS, DOT = ("GroupNonUniformArithmetic",), ("DotProduct", "DotProductInput4x8BitPacked")
_LEAST_INVOCATIONS = 128
"""That a workgroup may have by Vulkan's specification, and on PowerVR has; elsewhere it is 256 or more."""
_MOST_DEVICES, _MOST_TEXT, _MOST_NUMBER = 64, 256, (1 << 32) - 1


@dataclass(frozen=True)
class VulkanSection:
    """The GPU, and what its driver allows kernels; what is not said is the least that all have (spirv/capabilities.py).

    api             the newest Vulkan version its driver is conformant with
    capabilities    of SPIR-V, besides that least
    invocations     most in a workgroup; shared_bytes: its shared memory
    storage_buffers of one kernel; binding_bytes: the largest part of a buffer that one can be
    schedule        how kernels are cut: a class of crosscompile/gpu/schedules.py; "found" asks this machine, for these
                    limits too
    halves, bytes   kernels access single values of 16 and of 8 bits, as caches want; where a driver does not allow
                    that, they are parts of words
    mixed           dot products are less work where one side's bytes have a sign and the other's none
    subgroup        invocations of a subgroup, where it multiplies 16 x 16 matrices of f16 and sums them in f32: its
                    matrix units (VK_KHR_cooperative_matrix) read prompts
    times_slower    than the board's own CPU, where that is known
    """

    device: str
    api: str | None = None
    capabilities: tuple[str, ...] = ()
    invocations: int = Gpu.invocations
    shared_bytes: int = Gpu.shared_bytes
    storage_buffers: int = Gpu.buffers
    binding_bytes: int = Gpu.binding_bytes
    halves: bool = True
    bytes: bool = True
    schedule: str = Gpu.schedule
    mixed: bool = Gpu.mixed
    subgroup: int = Gpu.subgroup
    times_slower: int | None = None


@dataclass(frozen=True)
class Device:
    """One that Vulkan finds, in the words of its driver; numbers as in VulkanSection.

    kind             discrete, integrated, virtual, other, or processor: a program that imitates a GPU
    lacks            what it has not that every bundle needs; None: nothing
    vendor           PCI's number of the maker, or Khronos's
    halves, bytes    kernels read and write single values of 16 and of 8 bits
    sums             it adds over subgroups
    dot              it has integer dot products of four bytes; mixed: they are less work where one side has no sign
    matrices         a subgroup multiplies the matrices of kernels
    """

    name: str
    kind: str
    driver: str
    version: str
    lacks: str | None
    vulkan: str
    vendor: int
    invocations: int
    shared_bytes: int
    storage_buffers: int
    binding_bytes: int
    subgroup: int
    halves: bool
    bytes: bool
    sums: bool
    dot: bool
    mixed: bool
    matrices: bool

    @property
    def imitates(self) -> bool:
        """Whether it is a program."""
        return self.kind == PROCESSOR


def read(text: str, where: str) -> list[Device]:
    """The devices that `edgellm-rt gpus` printed. Raises CommandError, with the field, if that makes no sense."""
    return [_device(line, where) for line in text.splitlines()[:_MOST_DEVICES] if line.strip()]


def _device(line: str, where: str) -> Device:
    wrong = f"{where}: edgellm-rt gpus: "
    try:
        document = json.loads(line)
    except ValueError as error:
        raise CommandError(f"{wrong}{one_line(line, 80)!r} is no JSON: {error}") from error
    if not isinstance(document, dict):
        raise CommandError(f"{wrong}{one_line(line, 80)!r} is no object")
    values: dict[str, Any] = {}
    for member in fields(Device):
        value = document.get(member.name)
        kind = {"int": int, "bool": bool}.get(str(member.type), str)
        good = type(value) is kind or (value is None and member.name == "lacks")
        if not good or (isinstance(value, int) and not 0 <= value <= _MOST_NUMBER):
            raise CommandError(f"{wrong}{member.name} is {one_line(repr(value), 80)}")
        values[member.name] = one_line(value, _MOST_TEXT) if isinstance(value, str) else value
    return Device(**values)


def chosen(devices: Sequence[Device]) -> Device | None:
    """The GPU that the runtime takes of these; None where there is none, but perhaps what imitates one."""
    return next((device for device in devices if device.lacks is None and not device.imitates), None)


def asked(section: VulkanSection, device: Device) -> VulkanSection:
    """The section with what the driver says in the manifest's place; no limit is less than all drivers have.

    Dot products count where they are no single instruction, too: no driver of Mesa's makes more of them than of our
    own shifts and products, and on AMD's Vega it is a quarter to a third less. Matrix units whose speed nobody vouches
    for are not used.
    """
    schedule = PROCESSOR if device.imitates else _CLASSES.get(device.vendor, DESKTOP)
    sums = device.sums and schedule not in _WITHOUT_SUMS
    has_matrices = device.matrices and not device.imitates and device.subgroup in SUBGROUPS
    vouched = device.vendor == _NVIDIA or section.subgroup == device.subgroup
    return replace(
        section,
        device=device.name,
        api=None,
        capabilities=(*(SUMS if sums else ()), *(DOT if device.dot else ())),
        invocations=max(device.invocations, _LEAST_INVOCATIONS),
        shared_bytes=max(device.shared_bytes, Gpu.shared_bytes),
        storage_buffers=max(device.storage_buffers, Gpu.buffers),
        binding_bytes=max(device.binding_bytes, Gpu.binding_bytes),
        halves=device.halves,
        bytes=device.bytes,
        schedule=schedule,
        mixed=device.dot and device.mixed,
        subgroup=device.subgroup if has_matrices and vouched else 0,
    )


def common(sections: Sequence[VulkanSection]) -> VulkanSection:
    """What all of these GPUs, of one class, allow: kernels that are made for it open on each of them.

    sections: one at least. The smallest of each limit, what every driver can, and matrix units only where all have
    subgroups of the same size; `device` names each model of GPU once.
    """
    first, *others = sections
    assert all(each.schedule == first.schedule for each in others)
    return replace(
        first,
        device=one_line(", ".join(dict.fromkeys(each.device for each in sections)), _MOST_TEXT),
        capabilities=tuple(name for name in first.capabilities if all(name in each.capabilities for each in others)),
        invocations=min(each.invocations for each in sections),
        shared_bytes=min(each.shared_bytes for each in sections),
        storage_buffers=min(each.storage_buffers for each in sections),
        binding_bytes=min(each.binding_bytes for each in sections),
        halves=all(each.halves for each in sections),
        bytes=all(each.bytes for each in sections),
        mixed=any(each.mixed for each in sections),
        subgroup=first.subgroup if all(each.subgroup == first.subgroup for each in others) else 0,
    )


@dataclass(frozen=True)
class Verdict:
    """What kernels are to be made for, as a board's drivers say it.

    section: None where there is no GPU to go by. text: the GPU in a line, or why there is none. unfit: there are some,
    and all lack what every bundle needs
    """

    section: VulkanSection | None
    text: str
    unfit: bool = False


def verdict(section: VulkanSection, devices: Sequence[Device]) -> Verdict:
    """What the devices that Vulkan finds there come to. section: the manifest's."""
    gpu = chosen(devices)
    if gpu is not None:
        made_for = asked(section, gpu)
        return Verdict(made_for, describe(made_for))
    lacking = ", ".join(f"{each.name} lacks {each.lacks}" for each in devices if each.lacks is not None)
    if lacking:
        return Verdict(None, lacking, unfit=True)
    return Verdict(None, f"Vulkan finds no GPU there ({', '.join(each.name for each in devices) or 'nothing'})")


def describe(section: VulkanSection) -> str:
    """What kernels are made for, in a line."""
    has_dots = set(DOT) <= set(section.capabilities)
    narrow = " and ".join(size for size, has in (("8", section.bytes), ("16", section.halves)) if not has)
    can = [
        f"{section.storage_buffers if section.storage_buffers < 1000 else '1000+'} buffers",
        f"{section.invocations} threads and {section.shared_bytes // 1024} KiB",
        *(["sums of subgroups"] if set(SUMS) <= set(section.capabilities) else []),
        *([f"dot products{' with a side without signs' if section.mixed else ''}"] if has_dots else []),
        *(["matrix units"] if section.subgroup else []),
        *([f"values of {narrow} bits in words"] if narrow else []),
    ]
    return f"{section.device}, class {section.schedule}: {', '.join(can)}"
