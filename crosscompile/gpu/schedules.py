"""How kernels are cut for each class of GPUs: the one table of workgroups, tiles and reductions.

A board's manifest names its class (`[vulkan] schedule`); all classes share the kernels. Only "desktop" (NVIDIA H100 and
H200) and "processor" (Mesa's lavapipe) were measured. The others follow what the makers document and what Mesa's
compilers for these GPUs say of the kernels: with these numbers a token's have registers enough, or nearly (`make
drivers`). They are where tuning starts (knobs.py), and what counts where nothing was tuned.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Schedule:
    """One class.

    alone       threads share nothing: each has rows of a weight, or rows of attention, to itself. For what imitates a
                GPU: a barrier is a switch between coroutines there, and each of a thread's loads a step of a loop
    threads     most threads of a workgroup that shares the columns of a weight; of any workgroup where they are alone
    rows        rows of a weight that such a workgroup takes, or such a thread
    tile        rows of the activation that are computed together with them where threads are alone
    workgroups  as many of attention keep the device busy: contexts are not cut finer, and in no more than `splits`
    queries     most that share what attention reads of the cache: rows times query heads
    heads       query heads that a workgroup of a single row takes at once: each has sums in registers
    loads       numbers of the cache that a thread has on their way together for a single row: each takes a register
    sums        most of a thread where threads share the columns of a weight and there are several rows
    fused       of a token's fused layers: threads of a workgroup, of one of few workgroups, of one that rotates
    team        threads of those that share the columns of a row of the weight
    team_rows   rows of the weight that a team has at least
    weights     loads of weights, 16 bytes each, that a thread has on their way together
    rolled      drivers are asked not to unroll loops: Mesa's for Mali, Adreno, V3D and Intel otherwise run out of
                registers
    written     products of a tile are written out instead of a loop, for which V3D alone lacks the registers
    """

    alone: bool
    threads: int
    rows: int
    tile: int
    workgroups: int
    splits: int
    queries: int
    loads: int
    heads: int = 8
    sums: int = 8
    fused: tuple[int, int, int] = (512, 512, 512)
    team: int = 16
    team_rows: int = 2
    weights: int = 2
    rolled: bool = True
    written: bool = True


SCHEDULES = {
    "desktop": Schedule(
        alone=False,
        threads=128,
        rows=2,
        tile=0,
        workgroups=256,
        splits=16,
        queries=32,
        loads=64,
        sums=16,
        fused=(256, 1024, 128),
        team=32,
        team_rows=1,
        weights=8,
        rolled=False,
    ),
    "mali": Schedule(alone=False, threads=64, rows=2, tile=0, workgroups=64, splits=8, queries=16, loads=8),
    "adreno": Schedule(
        alone=False, threads=128, rows=2, tile=0, workgroups=64, splits=8, queries=16, loads=16, sums=16
    ),
    "v3d": Schedule(
        alone=False, threads=64, rows=2, tile=0, workgroups=32, splits=4, queries=16, loads=8, heads=2, written=False
    ),
    "intel": Schedule(
        alone=False,
        threads=64,
        rows=2,
        tile=0,
        workgroups=64,
        splits=8,
        queries=16,
        loads=8,
        fused=(256, 256, 256),
        weights=4,
    ),
    "processor": Schedule(
        alone=True, threads=8, rows=8, tile=32, workgroups=6, splits=8, queries=6, loads=16, rolled=False
    ),
}
