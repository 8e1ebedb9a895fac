"""deploy, rollback and status for a fleet: what is rolled out, the table, the report, and what to type next."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from edgellm import encryption, fleet_gpu, fleet_show, signing
from edgellm.bundle import MANIFEST, Bundle
from edgellm.errors import TrustError, UsageError
from edgellm.fleet import MAX_FAILURES, WAVES, Fleet, Member, read, share_of
from edgellm.fleet_plan import MakeBundle, Wish, gpu_wishes, planned, sizes_of_waves, wishes
from edgellm.fleet_report import conclude, conclude_check, exit_code, show_status
from edgellm.fleet_show import list_boards, list_failures, say
from edgellm.rollout import CHANGED, SAME, WENT_WRONG, Rollout, Show, play

ROLLOUT_WORDS = {CHANGED: "new", SAME: "has it"}
REHEARSAL_WORDS = {CHANGED: "would change", SAME: "has it"}
ROLLBACK_WORDS = {CHANGED: "went back", SAME: "left alone"}


def add_fleet(parser: argparse.ArgumentParser, what: str) -> Any:
    """--fleet, --group and --parallel; returns the group for more."""
    group = parser.add_argument_group("fleets", what)
    group.add_argument("--fleet", type=Path, metavar="FILE", help="many boards: a TOML file, or an Ansible inventory")
    group.add_argument(
        "--group", action="append", default=[], metavar="NAME", help="only this group or board of it; may be repeated"
    )
    group.add_argument("--parallel", type=_positive, default=10, metavar="N", help="boards at a time (default: 10)")
    return group


def add_rollout(parser: argparse.ArgumentParser) -> None:
    group = add_fleet(
        parser,
        "boards get the model in waves: first one board of each type, which must succeed; no further wave begins once\n"
        "more boards have failed than may, or all of a wave. What fails, or is not reached, keeps its old model.\n"
        "With --device vulkan or both, their GPUs are asked first, and a bundle is for what they have in common.\n"
        "Exit status: 0 all boards have it, 3 some failed, 4 it was stopped. Needs: pip install 'edgellm[fleet]'",
    )
    group.add_argument(
        "--waves",
        type=_waves,
        metavar="N,P%,…",
        help=f"sizes of the waves, the last one repeated (default: {','.join(WAVES)})".replace("%", "%%"),
    )
    group.add_argument(
        "--max-failures", metavar="N|P%", help=f"how many boards of the fleet may fail (default: {MAX_FAILURES}%)"
    )
    group.add_argument("--check", action="store_true", help="only say what would change on each board")
    group.add_argument("--diff", action="store_true", help="say what changes, file by file")


def check_place(args: argparse.Namespace) -> None:
    """Raises UsageError unless the arguments name either a board or a fleet."""
    if args.fleet is None:
        for option in ("group", "waves", "max_failures", "check", "diff"):
            if getattr(args, option, None):
                raise UsageError(f"--{option.replace('_', '-')} is for fleets; add --fleet FILE")
        if args.board is None:
            raise UsageError("which board? Add --board BOARD, or --fleet FILE for many")
    elif args.board is not None or args.host is not None:
        raise UsageError("--fleet FILE says which boards; leave out --board and --host")


def deploy(args: argparse.Namespace, make: MakeBundle) -> int:
    """`edgellm deploy --fleet`."""
    if args.key is not None:
        raise UsageError("--key FILE is one key, and each board of a fleet has its own; leave it out")
    fleet = read(args.fleet)
    members = fleet.selected(args.group)
    n, budget = len(members), args.max_failures or fleet.max_failures or MAX_FAILURES
    max_failures = share_of(budget, n)
    key = signing.load_private(args.sign, _ask_passphrase) if args.sign is not None else None
    wished = wishes(args, fleet, members)
    gpus = _survey(args, fleet, wished, max_failures)
    max_failures = n if args.check else max_failures
    with ExitStack() as stack:
        plan = planned(wished, gpus, make)
        made: dict[Path, Bundle] = {}
        for bundle in plan.bundles.values():
            if bundle.path not in made:
                line = key.line((bundle.path / MANIFEST).read_bytes()) if key is not None else None
                made[bundle.path] = stack.enter_context(encryption.view(bundle, line)) if line else bundle
                _check_signature(args, made[bundle.path])
        waves = [n] if args.check else sizes_of_waves(args.waves or fleet.waves, n, plan.n_canaries, max_failures)
        if not args.json:
            which = f", {', '.join(args.group)}" if args.group else ""
            begin = f"{n} boards{which}, in waves of {', '.join(map(str, waves))}; {max_failures} may fail"
            say(
                "fleet",
                f"{args.fleet}: {n} boards{which}, nothing is changed" if args.check else f"{args.fleet}: {begin}",
            )
        variables = {
            "edgellm_bundles": {name: str(made[bundle.path].path.absolute()) for name, bundle in plan.bundles.items()},
            "edgellm_verify": args.verify,
            "edgellm_require_signature": args.require_signature,
            "edgellm_signed_by": [_absolute(text) for text in args.signed_by or ()],
            "edgellm_encrypt": args.encrypt,
        }
        words = REHEARSAL_WORDS if args.check else ROLLOUT_WORDS
        began = time.monotonic()
        with fleet_show.shown(args.json, words) as show:
            rollout = play(
                "deploy",
                fleet,
                [_with_defaults(member, args) for member in plan.members],
                {**variables, **_per_board(fleet, args)},
                waves=waves,
                max_failures=max_failures,
                n_canaries=plan.n_canaries if waves[0] <= plan.n_canaries < n else 0,
                show=show,
                parallel=args.parallel,
                check=args.check,
                diff=args.diff,
            )
    if args.check:
        fleet_gpu.rehearse(gpus, rollout)
    code = exit_code(rollout)
    if args.json:
        said = {"fleet": str(args.fleet), "check": args.check, "exit": code, "gpus": gpus.as_json()}
        print(json.dumps({**said, **fleet_show.as_json(rollout)}))
        return code
    if args.diff:
        fleet_show.show_diffs(rollout)
    if args.check:
        conclude_check(args, rollout)
    else:
        conclude(args, rollout, time.monotonic() - began)
    return code


def _survey(args: argparse.Namespace, fleet: Fleet, wished: list[Wish], max_failures: int) -> fleet_gpu.Survey:
    """Asks the boards for whose GPU something is to be compiled, and says what they answered."""
    wanted = gpu_wishes(args, wished)
    gpus, run = fleet_gpu.ask(fleet, wanted, parallel=args.parallel, check=args.check, quiet=args.json)
    if run is not None and run.interrupted:
        raise KeyboardInterrupt
    if not args.json:
        fleet_gpu.tell(gpus)
    fleet_gpu.refuse(gpus, max_failures)
    return gpus


def _with_defaults(member: Member, args: argparse.Namespace) -> Member:
    """A board of a TOML file with what the playbook is to hear of it as variables."""
    own: dict[str, Any] = {"edgellm_service": args.service or member.service}
    if name := args.name or member.model_name:
        own["edgellm_name"] = name
    return Member(member.name, member.type, member.host, member.groups, vars={**member.vars, **own})


def _per_board(fleet: Fleet, args: argparse.Namespace) -> dict[str, Any]:
    """In an Ansible inventory these are its own variables, unless the command line says otherwise."""
    if not fleet.is_ansible:
        return {}
    given = {"edgellm_service": True if args.service else None, "edgellm_name": args.name}
    return {key: value for key, value in given.items() if value is not None}


def _check_signature(args: argparse.Namespace, bundle: Bundle) -> None:
    """What every board would refuse is refused before the first one."""
    if args.signed_by:
        signing.check(bundle, [signing.load_public(text) for text in args.signed_by])
    elif args.require_signature and not signing.signers(bundle):
        raise TrustError(f"{bundle.path} is not signed; sign it with --sign KEY (`edgellm keygen` makes one)")


def _absolute(text: str) -> str:
    """A key by its file is meant from here, wherever Ansible runs."""
    return str(Path(text).absolute()) if Path(text).exists() else text


def _ask_passphrase(prompt: str) -> str:
    from edgellm.keygen_cli import ask_passphrase

    return ask_passphrase(prompt)


def rollback(args: argparse.Namespace) -> int:
    """`edgellm rollback --fleet --from VERSION`."""
    if args.from_version is None:
        raise UsageError("--fleet goes back from one version: add --from VERSION (`edgellm status --fleet` shows them)")
    if len(args.from_version) < 6 or not set(args.from_version.lower()) <= set("0123456789abcdef"):
        raise UsageError(f"--from {args.from_version}: a version is 16 digits, 0-9 and a-f; give at least 6 of them")
    fleet = read(args.fleet)
    members = fleet.selected(args.group)
    variables = {"edgellm_from_version": args.from_version.lower(), "edgellm_name": args.model}
    with fleet_show.shown(args.json, ROLLBACK_WORDS) as show:
        rollout = _all_at_once(args, "rollback", fleet, members, variables, show)
    code = exit_code(rollout)
    if args.json:
        print(json.dumps({"fleet": str(args.fleet), "exit": code, **fleet_show.as_json(rollout)}))
        return code
    list_boards("went back", rollout.of(CHANGED))
    list_boards("left alone", rollout.of(SAME))
    list_failures(rollout.of(*WENT_WRONG))
    say("record", str(rollout.log))
    return code


def status(args: argparse.Namespace) -> int:
    """`edgellm status --fleet`: which version each board uses."""
    fleet = read(args.fleet)
    members = fleet.selected(args.group)
    with fleet_show.shown(True, {}) as show:
        rollout = _all_at_once(args, "info", fleet, members, {}, show)
    code = exit_code(rollout)
    if args.json:
        print(json.dumps({"fleet": str(args.fleet), "exit": code, **fleet_show.as_json(rollout)}))
        return code
    show_status(rollout)
    return code


def _all_at_once(
    args: argparse.Namespace,
    playbook: str,
    fleet: Fleet,
    members: tuple[Member, ...],
    variables: Mapping[str, Any],
    show: Show,
) -> Rollout:
    n = len(members)
    return play(playbook, fleet, members, variables, waves=[n], max_failures=n, show=show, parallel=args.parallel)


def _positive(text: str) -> int:
    if int(text) < 1:
        raise ValueError
    return int(text)


def _waves(text: str) -> tuple[str, ...]:
    waves = tuple(part.strip() for part in text.split(","))
    for part in waves:
        try:
            share_of(part, 100)
        except UsageError as error:
            raise argparse.ArgumentTypeError(str(error)) from error
    return waves
