"""What a bundle is compiled for: the instruction-set tier and its packing, from CPU features alone."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from crosscompile.errors import TargetError
from crosscompile.packing import GROUP, KINDS, Packing
from crosscompile.spirv.capabilities import Gpu

DEVICES = ("cpu", "vulkan", "both")
"""What may compute: the processor, a GPU through Vulkan, or whichever of them works and is faster."""


@dataclass(frozen=True, eq=False)
class Tier:
    """One class of vector units, and how weights are laid out for it.

    requires    features as Linux prints them in /proc/cpuinfo; all must be present
    llvm        attributes of the LLVM target; exactly what the kernels may use, no more
    rows        output rows of a row group (lanes of the 32-bit accumulator)
    chunk       consecutive columns of one row in a weight vector, by what kinds are like: "w4" or "w8" (kinds.py)
    unsigned    kinds, by what they are like, whose weights have an offset (vpdpbusd and vpmaddubsw multiply unsigned by
                signed; nibbles without a sign leave room to sum a whole group in 16 bits)
    sums        how the sum of a group of activations comes to them: "wide", −8 · Σa as int32; "narrow", its lower 16
                bits with zeros above, which is what a pair of 16-bit accumulators starts at; or "negated", the same of
                8 · Σa, for accumulators from which products are subtracted
    widened     the kinds whose weights are multiplied as 16-bit numbers: their activations come as int16
    float_rows  output rows of a row group of weights in floats
    gpu         of GPUs: what theirs can
    """

    name: str
    arch: str
    requires: tuple[str, ...]
    llvm: tuple[str, ...]
    rows: int
    chunk: dict[str, int]
    unsigned: tuple[str, ...] = ()
    sums: str = ""
    widened: tuple[str, ...] = ()
    float_rows: int = 16
    gpu: Gpu | None = None

    @property
    def gpu_class(self) -> str:
        """Of GPUs: how their kernels are cut (gpu/schedules.py)."""
        return self.gpu.schedule if self.gpu is not None else ""

    def packing(self, kind: str) -> str:
        """The packing string (runtime_c/FORMAT.md) of weights of `kind`: f16, f32 or one of KINDS."""
        if kind in ("f32", "f16"):
            return f"{kind}.r{self.float_rows}"
        how = KINDS[kind]
        chunk = min(self.chunk[how.like], GROUP // how.fields)
        return f"{kind}.r{self.rows}.k{chunk}" + (".u" if how.like in self.unsigned else "")

    def activations(self, packing: str) -> tuple[str, float, str]:
        """(sums, shrink, dtype) of rows quantized for weights of a packing (kernels/rows.py, Form).

        sums: as above, "" for weights without offset or zero points, and for GPUs, which sum themselves. shrink: what
        scale is multiplied by, a power of two, because nibbles that keep their sign are used as 16 · q. dtype: what the
        integers are stored as.
        """
        weights = Packing.parse(packing)
        how = weights.about
        signed_nibbles = how.like == "w4" and not weights.unsigned
        dtype = "int16" if how.like in self.widened else "int8"
        summed = how.zero and self.name != GPU_TIER
        sums = self.sums if weights.unsigned else "wide" if summed else ""
        return sums, (1 / 16 if signed_nibbles else 1.0), dtype


_LONG = {"w4": 16, "w8": 16}
_X86 = ("avx2", "fma", "f16c")
_AVX512 = ("avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512_vnni")

TIERS: dict[str, Tier] = {
    tier.name: tier
    for tier in (  # later entries of an architecture are better
        Tier("armv7-neon", "armv7", ("neon", "vfpv4"), ("+v7", "+neon", "+vfp4"), 4, _LONG, ("w4",), "narrow"),
        Tier("armv8-neon", "aarch64", ("asimd",), ("+v8a", "+neon"), 4, _LONG, ("w4",), "narrow"),
        Tier("dotprod", "aarch64", ("asimd", "asimddp"), ("+v8a", "+neon", "+dotprod"), 8, {"w4": 4, "w8": 4}),
        Tier(
            "i8mm",
            "aarch64",
            ("asimd", "asimddp", "i8mm"),
            ("+v8a", "+neon", "+dotprod", "+i8mm"),
            8,
            {"w4": 8, "w8": 8},
        ),
        Tier("avx2", "x86_64", _X86, ("+avx2", "+fma", "+f16c"), 8, {"w4": 4, "w8": 2}, ("w4",), "negated", ("w8",)),
        Tier(
            "avx-vnni",
            "x86_64",
            (*_X86, "avx_vnni"),
            ("+avx2", "+fma", "+f16c", "+avxvnni"),
            8,
            {"w4": 4, "w8": 4},
            ("w4", "w8"),
            "wide",
        ),
        Tier(
            "avx512-vnni",
            "x86_64",
            (*_X86, *_AVX512),
            ("+avx2", "+fma", "+f16c", "+avx512f", "+avx512bw", "+avx512vl", "+avx512dq", "+avx512vnni"),
            16,
            {"w4": 4, "w8": 4},
            ("w4", "w8"),
            "wide",
        ),
    )
}


GPU_TIER = "vulkan"
"""The tier of GPUs: weights row by row, a group's bytes together, nibbles with their sign."""


def gpu_tier(arch: str, gpu: Gpu | None = None) -> Tier:
    """The packing for a GPU, with a processor of `arch` that needs nothing in particular."""
    return Tier(GPU_TIER, arch, (), (), 1, {"w4": 16, "w8": 32}, float_rows=1, gpu=gpu or Gpu())


ARCHITECTURES = tuple(dict.fromkeys(tier.arch for tier in TIERS.values()))


@dataclass(frozen=True)
class Target:
    """A machine to compile for: architecture (aarch64, armv7, x86_64), system (linux, android) and tier.

    android_api: the oldest Android that programs must run on, as an API level; static programs run on any.
    gpu: what its GPU can, where that is to compute; the tier is gpu_tier's then.
    """

    arch: str
    os: str
    tier: Tier
    android_api: int | None = None
    gpu: Gpu | None = None

    @property
    def device(self) -> str:
        """What computes: "cpu" or "vulkan"."""
        return "cpu" if self.gpu is None else "vulkan"

    def on_gpu(self, gpu: Gpu) -> Target:
        """The same machine, with its GPU computing."""
        return replace(self, tier=gpu_tier(self.arch, gpu), gpu=gpu)

    @property
    def llvm(self) -> dict[str, object]:
        """TVM's target dictionary. The features are exactly the tier's, whatever core the board has."""
        system = "linux-android" if self.os == "android" else "linux-gnu"
        if self.arch == "armv7":
            return {
                "kind": "llvm",
                "mtriple": "armv7a-linux-gnueabihf",
                "mcpu": "cortex-a7",
                "mattr": list(self.tier.llvm),
                "mfloat-abi": "hard",
            }
        mcpu = {"aarch64": "generic", "x86_64": "x86-64"}[self.arch]
        return {"kind": "llvm", "mtriple": f"{self.arch}-{system}", "mcpu": mcpu, "mattr": list(self.tier.llvm)}


def target_for(arch: str, cpu_features: Iterable[str], os: str = "linux", android_api: int | None = None) -> Target:
    """The best tier for a CPU with these features (names of /proc/cpuinfo). TargetError if there is none."""
    features = set(cpu_features)
    if arch not in ARCHITECTURES:
        raise TargetError(f"architecture {arch!r} is not supported; supported are {', '.join(ARCHITECTURES)}")
    fitting = [t for t in TIERS.values() if t.arch == arch and features.issuperset(t.requires)]
    if not fitting:
        least = next(t for t in TIERS.values() if t.arch == arch)
        missing = ", ".join(sorted(set(least.requires) - features))
        raise TargetError(f"no tier fits this {arch} CPU: tier {least.name} needs {missing} in cpu_features")
    return Target(arch, os, fitting[-1], android_api)


def target_of_tier(name: str, os: str = "linux") -> Target:
    """The target of a tier named outright. TargetError if there is no such tier."""
    if name not in TIERS:
        raise TargetError(f"tier {name!r} does not exist; tiers are {', '.join(TIERS)}")
    return Target(TIERS[name].arch, os, TIERS[name])
