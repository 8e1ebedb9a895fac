"""How a single row's fused layers (fused.py) are cut, and what tuning may choose of it.

The defaults are their class's (schedules.py). A team of threads shares the columns of a row of the weight and
takes as many rows as are left for it; a result that is none of a layer's candidates is an error, as in knobs.py.
"""

from __future__ import annotations

from dataclasses import dataclass

from crosscompile.gpu.fused import ROTATED_PAIRS, Source
from crosscompile.gpu.knobs import chosen
from crosscompile.gpu.schedules import SCHEDULES
from crosscompile.kernels.build import Origin
from crosscompile.kernels.linear import Tuned
from crosscompile.packing import GROUP
from crosscompile.spirv.capabilities import Gpu

_ROWS = {
    "gated_linear": 2 * GROUP,
    "normed_linear": GROUP,
    "scaled_linear": GROUP,
    "rotated_linear": 2 * ROTATED_PAIRS,
}
"""Of the weight, that a workgroup has, by what declares the layer: powers of two."""
_TEAMS = (16, 32, 64)
"""Candidates. Of a team that is larger than a row has groups of columns, some threads do nothing."""
_FEW_WORKGROUPS = 256
"""So few that each needs more loads under way."""
_ROWS_OF_A_TEAM = 8
"""At most, of candidates: each row's sum and weights take registers."""


@dataclass(frozen=True)
class FusedKnobs:
    """How a fused layer is cut. All are powers of two.

    threads  of a workgroup
    team     threads that share the columns of a row
    loads    of 16 bytes of weights, that a thread has under way; as many as a team has rows, if these are more
    """

    threads: int
    team: int
    loads: int


@dataclass(frozen=True)
class Fused:
    """A fused layer, as far as its cut is concerned.

    kind   what declares it, of fused.py
    about  what tells its kernel from others of this kind and source, numbers that it only multiplies by aside
    """

    kind: str
    source: Source
    about: tuple[str, ...] = ()

    @classmethod
    def of(cls, origin: Origin | None) -> Fused | None:
        """The layer that a kernel is; None if it is another kernel."""
        if origin is None or origin.name not in _ROWS:
            return None
        given = origin.arguments
        about = [str(given["activation"])] if "activation" in given else []
        if "heads" in given:
            heads = given["heads"]
            about.append(f"{heads.query}x{heads.kv}x{heads.dim}.{heads.dtype}")
        about += [word for word, is_so in (("bias", given.get("biased")), ("clears", given.get("clears"))) if is_so]
        return cls(origin.name, given["source"], tuple(about))

    @property
    def key(self) -> str:
        """The name that results are filed under."""
        source = self.source
        about = [*self.about, *([] if source.epsilon is None else ["scaled"])]
        shape = f"{source.rows}x{source.columns}"
        return f"{self.kind}.{source.packing}:n1:{shape}:{'+'.join(about)}".rstrip(":")


def rows_of(kind: str) -> int:
    """Rows of the weight that a workgroup has."""
    return _ROWS[kind]


def groups_at_once(work: Fused, knobs: FusedKnobs) -> int:
    """Groups of columns of each of its rows that a thread reads before it uses the first."""
    return max(1, knobs.loads // rows_of_a_team(work, knobs))


def rows_of_a_team(work: Fused, knobs: FusedKnobs) -> int:
    """Rows of the weight that a team has of its workgroup's."""
    return _ROWS[work.kind] * knobs.team // knobs.threads


def default_fused(work: Fused, gpu: Gpu) -> FusedKnobs:
    """What counts where nothing was tuned."""
    rows, schedule = _ROWS[work.kind], SCHEDULES[gpu.schedule]
    many, few, rotated = schedule.fused
    wanted = few if work.source.rows // rows <= _FEW_WORKGROUPS else many
    if work.kind == "rotated_linear":
        wanted = rotated
    most = min(wanted, gpu.invocations, rows * schedule.team // schedule.team_rows)
    # whole teams, of as many rows each
    return FusedKnobs(1 << most.bit_length() - 1, schedule.team, schedule.weights)


def fused_candidates(work: Fused, gpu: Gpu) -> tuple[FusedKnobs, ...]:
    """What tuning tries: the default first, and nothing that comes to the same kernel twice."""
    rows, default = _ROWS[work.kind], default_fused(work, gpu)

    def kernel(knobs: FusedKnobs) -> tuple[int, int, int]:
        turns = -(-work.source.blocks // knobs.team)
        return knobs.threads, knobs.team, min(groups_at_once(work, knobs), turns)

    found = {kernel(default): default}
    teams = [team for team in _TEAMS if team == _TEAMS[0] or team // 2 < work.source.blocks]
    for threads in (128, 256, 512, 1024):
        for team in teams:
            for loads in (2, 4, 8, 16):
                knobs = FusedKnobs(threads, team, loads)
                if (
                    rows <= threads <= min(gpu.invocations, rows * team)
                    and rows_of_a_team(work, knobs) <= min(loads, _ROWS_OF_A_TEAM)
                    and shared_bytes(work, knobs) <= gpu.shared_bytes
                ):
                    found.setdefault(kernel(knobs), knobs)
    return tuple(found.values())


def shared_bytes(work: Fused, knobs: FusedKnobs) -> int:
    """Shared memory: of each row, and of the squares, a sum of each member; then of each piece; then two of a group."""
    sums = (_ROWS[work.kind] + (work.source.epsilon is not None)) * (knobs.team + 1)
    return 4 * (sums + knobs.threads + 2 * GROUP)


def chosen_fused(work: Fused, gpu: Gpu, tuned: Tuned) -> FusedKnobs:
    """What was found for a fused layer, or the default. CodegenError if that is no schedule of it."""
    return chosen(work.key, fused_candidates(work, gpu), tuned)
