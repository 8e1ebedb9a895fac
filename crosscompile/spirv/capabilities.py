"""What a GPU allows a kernel, and the check of every kernel against it.

The default is what nearly all drivers reach that a board may have (facts: V3DV, PanVK, Turnip, NVIDIA's): float32
arithmetic, 8- and 16-bit storage, 256 invocations and 16 KiB of shared memory for a workgroup, 8 storage buffers of
128 MiB.
"""

from __future__ import annotations

from dataclasses import dataclass

from crosscompile.errors import CodegenError

CAPABILITIES = {
    "Shader": 1,
    "Float16": 9,
    "Int64": 11,
    "Int16": 22,
    "Int8": 39,
    "GroupNonUniform": 61,
    "GroupNonUniformArithmetic": 63,
    "StorageBuffer16BitAccess": 4433,
    "StorageBuffer8BitAccess": 4448,
    "VulkanMemoryModel": 5345,
    "DotProductInput4x8BitPacked": 6018,
    "DotProduct": 6019,
    "CooperativeMatrixKHR": 6022,
}
"""Names to numbers, as in the SPIR-V specification's table of capabilities."""

EXTENSIONS = {
    "StorageBuffer8BitAccess": "SPV_KHR_8bit_storage",
    "DotProduct": "SPV_KHR_integer_dot_product",
    "DotProductInput4x8BitPacked": "SPV_KHR_integer_dot_product",
    "VulkanMemoryModel": "SPV_KHR_vulkan_memory_model",
    "CooperativeMatrixKHR": "SPV_KHR_cooperative_matrix",
}
"""What SPIR-V 1.3 must declare for a capability of a later version."""

NARROW = {2: "StorageBuffer16BitAccess", 1: "StorageBuffer8BitAccess"}
"""What accesses to elements of so many bytes need in buffers; without it they lie in words (packed.py)."""
FLOOR = ("Shader", "GroupNonUniform", *NARROW.values())
"""What kernels need, and what nearly all GPUs have."""

MATRIX_UNITS = ("Float16", "VulkanMemoryModel", "CooperativeMatrixKHR", "GroupNonUniformArithmetic")
"""What kernels for matrix units declare: products of f16 matrices, summed in f32, by a subgroup together."""


MOST_BUFFERS = 12
"""Of a kernel, whatever a GPU binds: what the runtime passes (ELLM_KERNEL_POINTERS)."""


@dataclass(frozen=True)
class Gpu:
    """What a GPU's driver reports, as far as kernels depend on it.

    capabilities    names of SPIR-V capabilities that a kernel may declare
    invocations     most of a workgroup; shared_bytes: its shared memory
    buffers         storage buffers of a kernel; binding_bytes: the largest part of a buffer that one can be
    schedule        its class in crosscompile/gpu/schedules.py
    subgroup        invocations of a subgroup, where matrix units depend on it; 0: it has none, or they are not used
    matrix          rows and columns of the matrices that a subgroup multiplies
    mixed           dot products are less work of signed bytes and unsigned ones than of signed ones alone
    """

    capabilities: tuple[str, ...] = FLOOR
    invocations: int = 256
    shared_bytes: int = 16384
    buffers: int = 8
    binding_bytes: int = 128 << 20
    schedule: str = "desktop"
    subgroup: int = 0
    matrix: int = 16
    mixed: bool = False

    def has(self, *names: str) -> bool:
        """Whether kernels may use all of these capabilities."""
        return set(names) <= set(self.capabilities)

    @property
    def packed(self) -> frozenset[int]:
        """Bytes of elements that it cannot access by themselves."""
        return frozenset(size for size, name in NARROW.items() if not self.has(name))

    @property
    def has_matrices(self) -> bool:
        """Whether kernels may use matrix units."""
        return self.subgroup > 0 and self.has(*MATRIX_UNITS)


PUSH_BYTES = 128
"""Push constants that every driver has (Vulkan specification, required limits)."""


@dataclass(frozen=True)
class Needs:
    """What one kernel asks of a GPU; units as in Gpu."""

    capabilities: tuple[str, ...]
    invocations: int
    shared_bytes: int
    buffers: int
    push_bytes: int


def check(name: str, needs: Needs, gpu: Gpu) -> None:
    """CodegenError, with what is too much, if a GPU cannot run a kernel."""
    missing = [capability for capability in needs.capabilities if capability not in gpu.capabilities]
    if missing:
        raise CodegenError(
            f"kernel {name} needs SPIR-V's {', '.join(missing)}, which the board's GPU lacks ([vulkan] capabilities); "
            "compile with --device cpu"
        )
    limits = (
        ("invocations in a workgroup", needs.invocations, gpu.invocations),
        ("bytes of shared memory", needs.shared_bytes, gpu.shared_bytes),
        ("storage buffers", needs.buffers, min(gpu.buffers, MOST_BUFFERS)),
        ("bytes of push constants", needs.push_bytes, PUSH_BYTES),
    )
    for what, asked, most in limits:
        if asked > most:
            raise CodegenError(
                f"kernel {name} needs {asked} {what}, the board's GPU has {most} ([vulkan] in its manifest); "
                "compile with --device cpu"
            )
