"""What each board of a fleet is to get: first as it is wished for, then as bundles, and in which order."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from crosscompile.target import DEVICES
from edgellm import archive
from edgellm.boards import Board, load_board
from edgellm.bundle import MANIFEST, Bundle
from edgellm.errors import BoardError, UsageError
from edgellm.fleet import WAVES, Fleet, Member, share_of, wave_sizes
from edgellm.fleet_gpu import Asked, Survey

MakeBundle = Callable[[str, Board | None, str | None, str | None], Bundle]
"""The bundle of a model, for a type of board, in a scheme, for a device; None: what the model is, and what is usual."""


@dataclass(frozen=True)
class Wish:
    """What a board is to get. board: its type; None: the model is a bundle, for which the others are None, too."""

    member: Member
    model: str
    board: Board | None = None
    scheme: str | None = None
    device: str | None = None


@dataclass(frozen=True)
class Plan:
    """What goes where: members in the order of the rollout, the bundle of each, and how many come first."""

    members: list[Member]
    bundles: dict[str, Bundle]
    n_canaries: int


def wishes(args: argparse.Namespace, fleet: Fleet, members: Sequence[Member]) -> list[Wish]:
    """What the command line and the fleet's file ask for. Raises UsageError or BoardError where they do not say."""
    types: dict[str, Board] = {}
    found = []
    for member in members:
        model = args.model or member.model
        if model is None:
            remedy = "edgellm_model" if fleet.is_ansible else "model"
            raise UsageError(f"{fleet.path}: which model for {member.name}? Name it, or set {remedy} in its group")
        if Path(model).suffix == archive.SUFFIX or (Path(model) / MANIFEST).is_file():
            found.append(Wish(member, model, None, args.scheme, args.device))
            continue
        if member.type is None:
            raise BoardError(
                f"{fleet.path}: {member.name}: edgellm_board is missing, so nobody knows what to compile for; set it "
                "to a type that `edgellm boards` lists, or deploy a bundle"
            )
        if member.type not in types:
            types[member.type] = load_board(member.type)
        scheme, device = args.scheme or member.scheme, args.device or member.device
        found.append(Wish(member, model, types[member.type], scheme, device))
    return found


def gpu_wishes(args: argparse.Namespace, wished: Sequence[Wish]) -> list[Asked]:
    """Boards for whose GPU something is to be compiled."""
    split = "split" if args.gpu_layers is not None else None
    devices = [split or wish.device or DEVICES[0] for wish in wished]
    return [
        Asked(wish.member, wish.board, device)
        for wish, device in zip(wished, devices, strict=True)
        if wish.board is not None and device != "cpu"
    ]


def planned(wished: Sequence[Wish], gpus: Survey, make: MakeBundle) -> Plan:
    """Makes every bundle before the first board is touched, each once; puts one board of each kind first.

    That one is a board for whose GPU the bundle was made, if any is: others would not try all of it.
    """
    made: dict[tuple[str | None, ...], Bundle] = {}
    bundles: dict[str, Bundle] = {}
    firsts: dict[tuple[Path, str | None], Member] = {}
    for wish in wished:
        member, kind = wish.member, gpus.kind_of(wish.member.name)
        what: tuple[str | None, ...] = (wish.model,)
        if wish.board is not None:
            what = (wish.model, wish.board.id, wish.scheme, wish.device, kind.section.schedule if kind else None)
        if what not in made:
            board = replace(wish.board, vulkan=kind.section) if wish.board is not None and kind else wish.board
            made[what] = make(wish.model, board, wish.scheme, wish.device)
        bundles[member.name] = made[what]
        first = firsts.setdefault((made[what].path, member.type), member)
        if gpus.counts(member.name) and not gpus.counts(first.name):
            firsts[(made[what].path, member.type)] = member
    canaries = list(firsts.values())
    names = {member.name for member in canaries}
    ordered = [*canaries, *(wish.member for wish in wished if wish.member.name not in names)]
    return Plan(ordered, bundles, len(canaries))


def sizes_of_waves(asked: tuple[str, ...] | None, n: int, n_canaries: int, max_failures: int) -> list[int]:
    """As asked for; else the canaries, a tenth, then a quarter at a time.

    Ansible stops after a wave in which every board failed. So that this never happens within the budget, waves that
    nobody asked for have more boards than may fail.
    """
    if asked is not None:
        return wave_sizes(asked, n)
    shares = (max(share_of(share, n), max_failures + 1) for share in WAVES[1:])
    return wave_sizes((str(n_canaries), *map(str, shares)), n)
