"""What the GPUs of a fleet's boards have in common: their drivers are asked before anything is compiled for them.

One bundle goes to many boards, so that it is made for what all GPUs of a class allow on the boards of one type. Each
class (Mali, Adreno, ...) has a bundle of its own: kernels are cut for a class, and what is cut for none in particular
is slow on all. A board that does not answer does not count; it gets what the others of its type get.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from edgellm import board_gpu, gpu_facts
from edgellm.board_gpu import ONLY_GPU
from edgellm.boards import Board
from edgellm.errors import CommandError, UnsuitableError
from edgellm.fleet import Fleet, Member
from edgellm.fleet_show import say, shown
from edgellm.gpu_facts import FOUND, VulkanSection
from edgellm.instances import read_instances
from edgellm.remembered import remember_gpu
from edgellm.rollout import CHANGED, DONE, FAILED, SAME, BoardState, Rollout, play
from edgellm.terminal import one_line

_WORDS = {CHANGED: "asked", SAME: "asked"}


@dataclass(frozen=True)
class Kind:
    """Boards of one type whose GPUs are of one class. section: what all of these allow."""

    type: str
    section: VulkanSection
    boards: tuple[str, ...]


@dataclass(frozen=True)
class Survey:
    """What came of asking.

    types      of boards that were asked, by the board's name, and what their manifests say
    kinds      of boards that answered
    uncounted  why each of the others does not count
    unfit      those of them that are to get what only a GPU can run, and have none that could
    """

    types: Mapping[str, tuple[str, VulkanSection]] = field(default_factory=dict)
    kinds: tuple[Kind, ...] = ()
    uncounted: Mapping[str, str] = field(default_factory=dict)
    unfit: tuple[str, ...] = ()

    def counts(self, name: str) -> bool:
        """Whether a board's answer is in one of the kinds."""
        return any(name in kind.boards for kind in self.kinds)

    def kind_of(self, name: str) -> Kind | None:
        """What is made for a board: for its kind; for one without an answer, the kind of its type that its manifest
        expects, else the largest one. None: it was not asked, or nobody of its type answered."""
        if name not in self.types:
            return None
        its_type, manifest = self.types[name]
        of_type = [kind for kind in self.kinds if kind.type == its_type]
        return max(
            of_type,
            key=lambda kind: (name in kind.boards, kind.section.schedule == manifest.schedule, len(kind.boards)),
            default=None,
        )

    def as_json(self) -> dict[str, Any]:
        """What --json prints of it."""
        kinds = [
            {"type": kind.type, "class": kind.section.schedule, "allows": asdict(kind.section), "boards": kind.boards}
            for kind in self.kinds
        ]
        return {"kinds": kinds, "not_counted": dict(self.uncounted)}


@dataclass(frozen=True)
class Asked:
    """A board for whose GPU something is to be compiled. board: its type; device: "vulkan", "both" or "split"."""

    member: Member
    board: Board
    device: str

    @property
    def manifest(self) -> VulkanSection | None:
        """None where there is nothing to ask: no GPU is known, or it is this machine's, which is asked anyway."""
        section = self.board.vulkan
        return None if section is None or section.schedule == FOUND else section


def ask(
    fleet: Fleet, wanted: Sequence[Asked], *, parallel: int, check: bool, quiet: bool
) -> tuple[Survey, Rollout | None]:
    """Asks these boards, side by side, by Ansible; nothing that goes wrong on one of them is an error.

    check: nothing is left on the boards. Returns the run of Ansible too, as it may have been interrupted; None if there
    is nobody to ask.
    """
    asked = [each for each in wanted if each.manifest is not None]
    if not asked:
        return Survey(), None
    n = len(asked)
    if not quiet:
        say("GPUs", f"asking the drivers of {n} boards")
    for board in {each.board.id: each.board for each in asked}.values():
        board_gpu.program_for(board)  # once, not by each of Ansible's processes
    with shown(quiet, _WORDS) as show:
        members = [each.member for each in asked]
        run = play("gpu", fleet, members, {}, waves=[n], max_failures=n, show=show, parallel=parallel, check=check)
    sections = {each.member.name: _section(each, run.boards[each.member.name])[0] for each in asked}
    _remember(asked, sections)
    return concluded(asked, run.boards), run


def concluded(asked: Sequence[Asked], states: Mapping[str, BoardState]) -> Survey:
    """What the answers come to. states: what came of each board, by its name."""
    types: dict[str, tuple[str, VulkanSection]] = {}
    kinds: dict[tuple[str, str], dict[str, VulkanSection]] = {}
    uncounted: dict[str, str] = {}
    unfit = []
    for each in asked:
        assert each.manifest is not None
        name, its_type = each.member.name, each.board.id
        types[name] = (its_type, each.manifest)
        section, why = _section(each, states[name])
        if section is not None:
            kinds.setdefault((its_type, section.schedule), {})[name] = section
            continue
        uncounted[name] = why
        if each.device in ONLY_GPU and states[name].answer.get("unfit") is True:
            unfit.append(name)
    return Survey(
        types,
        tuple(Kind(its_type, gpu_facts.common(list(of.values())), tuple(of)) for (its_type, _), of in kinds.items()),
        uncounted,
        tuple(unfit),
    )


def refuse(survey: Survey, max_failures: int) -> None:
    """Raises UnsuitableError if a rollout could not end well, so that nothing is compiled for it: more boards than may
    fail cannot run what they are to get, or all of a type that answer, its canary among them.
    """
    able = {its_type for name, (its_type, _) in survey.types.items() if name not in survey.unfit}
    if len(survey.unfit) <= max_failures and all(survey.types[name][0] in able for name in survey.unfit):
        return
    which = "; ".join(f"{name}: {survey.uncounted[name]}" for name in survey.unfit)
    raise UnsuitableError(
        f"{len(survey.unfit)} of {len(survey.types)} boards have no GPU that could compute: {one_line(which, 2000)}; "
        "mend that, leave those boards out, or use --device cpu, or both, which falls back"
    )


def rehearse(survey: Survey, rollout: Rollout) -> None:
    """In a rehearsal no board tries its bundle: those that could not run it are marked as failed here."""
    for name in survey.unfit:
        if rollout.boards[name].state in DONE:
            rollout.boards[name].state = FAILED
            rollout.boards[name].text = f"no GPU could compute: {survey.uncounted[name]}"


def tell(survey: Survey) -> None:
    """What is compiled for, and who does not count."""
    for kind in survey.kinds:
        which = f"{len(kind.boards)} boards" if len(kind.boards) > 1 else kind.boards[0]
        say("GPUs", f"{kind.type}, {which}: {gpu_facts.describe(kind.section)}")
    for silent in sorted({its_type for its_type, _ in survey.types.values()} - {kind.type for kind in survey.kinds}):
        say("GPUs", f"{silent}: no board says what its GPU allows; kernels are made for what the manifest says")
    reasons: dict[str, list[str]] = {}
    for name, why in survey.uncounted.items():
        reasons.setdefault(why, []).append(name)
    for why, boards in reasons.items():
        say("", f"{one_line(', '.join(boards), 1000)} {'does' if len(boards) == 1 else 'do'} not count: {why}")


def _section(asked: Asked, state: BoardState) -> tuple[VulkanSection | None, str]:
    """What a board's GPU allows; or None, and why. What the record says is checked as if it came from the board."""
    assert asked.manifest is not None
    answer = state.answer
    if state.state not in DONE:
        return None, state.text or "it was not reached"
    if answer.get("gpu") is None:
        return None, one_line(str(answer.get("why")), 400)
    lines = answer.get("devices")
    try:
        devices = gpu_facts.read("\n".join(map(json.dumps, lines if isinstance(lines, list) else ())), state.name)
    except CommandError as error:
        return None, str(error)
    found = gpu_facts.verdict(asked.manifest, devices)
    return found.section, found.text


def _remember(asked: Sequence[Asked], sections: Mapping[str, VulkanSection | None]) -> None:
    """Boards that `edgellm boards` knows by these addresses keep what their drivers said."""
    own = read_instances().values()
    for each in asked:
        section = sections[each.member.name]
        for instance in own:
            if section is not None and (instance.type, instance.address) == (each.board.id, each.member.host):
                there = replace(each.board, instance=instance.name, host=instance.host, port=instance.port)
                remember_gpu(instance.name, there.whereabouts, section)
