"""What a driver's answer means for kernels. How real drivers are asked: tests/compile/test_gpu_asked.py."""

from __future__ import annotations

import json
from typing import Any

import pytest

from edgellm.errors import CommandError
from edgellm.gpu_facts import DOT, SUMS, Device, VulkanSection, asked, chosen, common, describe, read, verdict

MANIFEST = VulkanSection("Mali-G610", api="1.2", schedule="mali", times_slower=3)
NVIDIA, ARM, QUALCOMM, BROADCOM, AMD, INTEL = 4318, 0x13B5, 0x5143, 0x14E4, 4098, 0x8086


def line(**changes: Any) -> dict[str, Any]:
    """What `edgellm-rt gpus` prints of a GPU."""
    texts = {"name": "A GPU", "kind": "integrated", "driver": "panvk", "version": "Mesa 25.0", "vulkan": "1.3.0"}
    numbers = {"vendor": ARM, "invocations": 1024, "shared_bytes": 32768, "storage_buffers": 4096, "subgroup": 16}
    can = {"halves": True, "bytes": True, "sums": True, "dot": True, "mixed": False, "matrices": False}
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
    [
        *((ARM, "mali"), (QUALCOMM, "adreno"), (BROADCOM, "v3d"), (INTEL, "intel")),
        *((NVIDIA, "desktop"), (AMD, "desktop"), (1, "desktop")),
    ],
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
    assert "8 bits in words" in describe(asked(MANIFEST, device(bytes=False)))


def test_sums_over_subgroups_are_not_used_where_drivers_make_too_much_of_them():
    assert [asked(MANIFEST, device(vendor=each)).capabilities for each in (ARM, BROADCOM)] == [DOT, DOT]
    assert asked(MANIFEST, device(vendor=QUALCOMM)).capabilities == (*SUMS, *DOT)


def test_what_kind_of_dot_products_there_are_is_said():
    assert describe(asked(MANIFEST, device(mixed=True))).endswith("dot products with a side without signs")


def test_matrix_units_are_used_of_nvidia_or_where_the_manifest_names_them():
    assert asked(MANIFEST, device(vendor=NVIDIA, matrices=True, subgroup=32)).subgroup == 32
    assert asked(MANIFEST, device(vendor=AMD, matrices=True, subgroup=64)).subgroup == 0
    named = VulkanSection("Radeon", subgroup=64)
    assert asked(named, device(vendor=AMD, matrices=True, subgroup=64)).subgroup == 64
    assert asked(named, device(vendor=AMD, matrices=False, subgroup=64)).subgroup == 0
    assert asked(MANIFEST, device(vendor=NVIDIA, matrices=True, subgroup=48)).subgroup == 0


def test_no_limit_is_less_than_all_drivers_have():
    section = asked(MANIFEST, device(invocations=64, shared_bytes=0, storage_buffers=4, binding_bytes=1))
    least = VulkanSection("")
    assert section.invocations == 128
    for name in ("shared_bytes", "storage_buffers", "binding_bytes"):
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


def test_what_several_gpus_allow_is_the_least_of_each():
    more = asked(MANIFEST, device(vendor=QUALCOMM, name="Adreno 740", storage_buffers=64, shared_bytes=16384))
    less = asked(MANIFEST, device(vendor=QUALCOMM, name="Adreno 660", invocations=512, binding_bytes=1 << 28))
    assert common([more]) == more
    both = common([more, less, more])
    assert (both.invocations, both.shared_bytes, both.storage_buffers, both.binding_bytes) == (512, 16384, 64, 1 << 28)
    assert (both.schedule, both.capabilities, both.bytes) == ("adreno", (*SUMS, *DOT), True)
    assert both.device == "Adreno 740, Adreno 660"
    assert both.times_slower == MANIFEST.times_slower


def test_several_gpus_may_only_what_all_can():
    gpus = [asked(MANIFEST, device(vendor=AMD, **can)) for can in ({}, {"sums": False}, {"bytes": False})]
    assert common(gpus).capabilities == common(gpus[::-1]).capabilities == DOT
    assert not common(gpus).bytes
    assert not common(gpus[::-1]).bytes
    assert common(gpus[:2]).bytes
    assert common(gpus).halves
    in_words = asked(MANIFEST, device(vendor=AMD, halves=False))
    assert not common([*gpus, in_words]).halves
    assert not common([in_words, *gpus]).halves
    assert common([gpus[1], asked(MANIFEST, device(vendor=AMD, dot=False))]).capabilities == ()


def test_unsigned_sides_of_dot_products_are_what_one_of_several_wants():
    """The others can do that, too, if with more work."""
    plain, mixed = (asked(MANIFEST, device(vendor=QUALCOMM, mixed=each)) for each in (False, True))
    assert (common([plain, plain]).mixed, common([plain, mixed]).mixed, common([mixed, plain]).mixed) == (
        False,
        True,
        True,
    )
    assert not asked(MANIFEST, device(vendor=QUALCOMM, mixed=True, dot=False)).mixed


def test_matrix_units_are_used_where_all_have_them_with_subgroups_of_one_size():
    def with_matrices(subgroup: int, vendor: int = NVIDIA) -> VulkanSection:
        return asked(VulkanSection(""), device(vendor=vendor, matrices=True, subgroup=subgroup))

    assert common([with_matrices(32), with_matrices(32)]).subgroup == 32
    assert common([with_matrices(32), with_matrices(64)]).subgroup == 0
    assert common([with_matrices(32), with_matrices(32, AMD)]).subgroup == 0  # which nobody vouches for
    assert common([with_matrices(32, AMD), with_matrices(32)]).subgroup == 0


def test_a_verdict_names_the_gpu_or_why_there_is_none():
    good = verdict(MANIFEST, [device()])
    assert good.section == asked(MANIFEST, device())
    assert good.text.startswith("A GPU, class mali: ")
    old = verdict(MANIFEST, [device(lacks="Vulkan 1.1"), device(kind="processor")])
    assert (old.section, old.text, old.unfit) == (None, "A GPU lacks Vulkan 1.1", True)
    imitated = verdict(MANIFEST, [device(kind="processor", name="llvmpipe")])
    assert (imitated.section, imitated.unfit) == (None, False)
    assert imitated.text == "Vulkan finds no GPU there (llvmpipe)"
