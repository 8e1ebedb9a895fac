"""What a driver's answer means for kernels. How real drivers are asked: tests/compile/test_gpu_asked.py."""

from __future__ import annotations

import json
from typing import Any

import pytest

from edgellm.errors import CommandError
from edgellm.gpu_facts import DOT, SUMS, Device, VulkanSection, asked, chosen, describe, read

MANIFEST = VulkanSection("Mali-G610", api="1.2", schedule="mali", times_slower=3)
NVIDIA, ARM, QUALCOMM, BROADCOM, AMD = 4318, 0x13B5, 0x5143, 0x14E4, 4098


def line(**changes: Any) -> dict[str, Any]:
    """What `edgellm-rt gpus` prints of a GPU."""
    texts = {"name": "A GPU", "kind": "integrated", "driver": "panvk", "version": "Mesa 25.0", "vulkan": "1.3.0"}
    numbers = {"vendor": ARM, "invocations": 1024, "shared_bytes": 32768, "storage_buffers": 4096, "subgroup": 16}
    can = {"bytes": True, "sums": True, "dot": True, "matrices": False}
    return {"type": "gpu", **texts, **numbers, "binding_bytes": 1 << 30, **can, "lacks": None, **changes}


def device(**changes: Any) -> Device:
    return read(json.dumps(line(**changes)), "kitchen")[0]


def test_the_driver_takes_the_place_of_the_manifest_but_not_of_what_was_measured():
    section = asked(MANIFEST, device())
    assert section == VulkanSection(
        device="A GPU",
        capabilities=DOT,
        invocations=1024,
        shared_bytes=32768,
        storage_buffers=4096,
        binding_bytes=1 << 30,
        schedule="mali",
        times_slower=3,
    )
    limits = "1000+ buffers, 1024 threads and 32 KiB, dot products"
    assert describe(section) == f"A GPU, class mali: {limits}"


@pytest.mark.parametrize(
    ("vendor", "schedule"),
    [(ARM, "mali"), (QUALCOMM, "adreno"), (BROADCOM, "v3d"), (NVIDIA, "desktop"), (AMD, "desktop"), (1, "desktop")],
)
def test_the_maker_decides_the_class(vendor: int, schedule: str):
    assert asked(MANIFEST, device(vendor=vendor)).schedule == schedule


def test_a_program_that_imitates_a_gpu_has_a_class_of_its_own_and_no_matrices():
    section = asked(MANIFEST, device(kind="processor", matrices=True, vendor=NVIDIA))
    assert section.schedule == "processor"
    assert set(DOT) <= set(section.capabilities)
    assert section.subgroup == 0


def test_what_a_driver_does_not_have_is_not_used():
    assert asked(MANIFEST, device(dot=False, vendor=QUALCOMM)).capabilities == SUMS
    assert asked(MANIFEST, device(sums=False, vendor=QUALCOMM)).capabilities == DOT
    assert not asked(MANIFEST, device(bytes=False)).bytes


def test_sums_over_subgroups_are_not_used_where_drivers_make_too_much_of_them():
    assert [asked(MANIFEST, device(vendor=each)).capabilities for each in (ARM, BROADCOM)] == [DOT, DOT]
    assert asked(MANIFEST, device(vendor=QUALCOMM)).capabilities == (*SUMS, *DOT)


def test_matrix_units_are_used_of_nvidia_or_where_the_manifest_names_them():
    assert asked(MANIFEST, device(vendor=NVIDIA, matrices=True, subgroup=32)).subgroup == 32
    assert asked(MANIFEST, device(vendor=AMD, matrices=True, subgroup=64)).subgroup == 0
    named = VulkanSection("Radeon", subgroup=64)
    assert asked(named, device(vendor=AMD, matrices=True, subgroup=64)).subgroup == 64
    assert asked(named, device(vendor=AMD, matrices=False, subgroup=64)).subgroup == 0
    assert asked(MANIFEST, device(vendor=NVIDIA, matrices=True, subgroup=48)).subgroup == 0


def test_no_limit_is_less_than_all_drivers_have():
    section = asked(MANIFEST, device(invocations=128, shared_bytes=0, storage_buffers=4, binding_bytes=1))
    least = VulkanSection("")
    for name in ("invocations", "shared_bytes", "storage_buffers", "binding_bytes"):
        assert getattr(section, name) == getattr(least, name)


def test_the_first_gpu_counts_that_lacks_nothing_and_is_one():
    imitation, old, gpu = device(kind="processor"), device(lacks="8-bit storage"), device(name="Second")
    assert chosen([old, gpu, imitation]) == gpu
    assert chosen([old, imitation]) is None
    assert chosen([]) is None


def test_texts_are_harmless():
    assert device(name="A\x1b[31m\nGPU" + "x" * 999).name.isprintable()
    assert len(device(name="x" * 9999).name) <= 256


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("Segmentation fault", "no JSON"),
        ("[1]", "no object"),
        ("{}", "name is None"),
        (json.dumps(line(shared_bytes=-1)), "shared_bytes is -1"),
        (json.dumps(line(storage_buffers=1 << 32)), "storage_buffers is 4294967296"),
        (json.dumps(line(subgroup=True)), "subgroup is True"),
        (json.dumps(line(dot=1)), "dot is 1"),
        (json.dumps(line(invocations=1.5)), "invocations is 1.5"),
        (json.dumps(line(name=None)), "name is None"),
        (json.dumps(line(lacks=3)), "lacks is 3"),
    ],
)
def test_an_answer_that_makes_no_sense_is_named_with_its_field(text: str, names: str):
    with pytest.raises(CommandError, match=f"kitchen: edgellm-rt gpus: .*{names}"):
        read(text, "kitchen")
