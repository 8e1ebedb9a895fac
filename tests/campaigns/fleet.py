"""Rollouts to many boards of which some are broken: python -m tests.campaigns.fleet [--boards 60] [--seed 1]

Each round breaks boards at random (off, or trusting another key), draws waves and a budget, and rolls out a new model.
What is promised is worked out beforehand, from the waves alone; afterwards every board is looked at: it must have the
new model or the old one, as promised, and a second rollout to the mended fleet must change exactly the others.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from edgellm.fleet import share_of, wave_sizes
from tests.emulated.fleet_boards import Boards, running_boards, slot
from tests.standin import make_bundle


def promised(n: int, waves: Sequence[int], broken: set[int], max_failures: int) -> tuple[set[int], int]:
    """(boards with the new model, exit code): the canary must succeed, and no wave follows one that used the budget up,
    or in which all failed.
    """
    new: set[int] = set()
    n_failed = begin = 0
    for index, size in enumerate(waves):
        wave = set(range(begin, begin + size))
        begin += size
        new |= wave - broken
        n_failed += len(wave & broken)
        budget = 0 if index == 0 and size == 1 else max_failures
        if begin < n and (n_failed > budget or wave <= broken):
            return new, 4
    return new, 3 if n_failed else 0


def one_round(boards: Boards, draw: random.Random, number: int) -> str:
    """One rollout that meets broken boards, and one after they were mended. Returns what happened, in a line."""
    n = len(boards.all)
    broken = set(draw.sample(range(n), draw.randint(0, max(1, n // 6))))
    off = {index for index in broken if draw.random() < 0.5}
    waves = draw.choice(("1,10%,25%", "1,50%", "20%", "1,3,8", "100%"))
    budget = draw.choice(("0", "2", "5%", "10%", "25%"))
    before = boards.versions()
    bundle = make_bundle(boards.folder / f"bundle{number}", {"plan.json": f'{{"round": {number}}}'.encode()})
    expected, code = promised(n, wave_sizes(waves.split(","), n), broken, share_of(budget, n))
    for index in off:
        boards[index].stop()
    for index in broken - off:
        boards[index].pin_another_key(boards.folder / "keys")
    began = time.monotonic()
    fleet = ("deploy", "--fleet", str(boards.fleet), str(bundle.path), "--json")
    done = boards.edgellm(*fleet, "--waves", waves, "--max-failures", budget)
    elapsed_s = time.monotonic() - began
    assert done.returncode == code, f"{done.returncode} instead of {code}: {done.stdout}{done.stderr}"
    wanted = [slot(bundle) if index in expected else before[index] for index in range(n)]
    assert boards.versions() == wanted, done.stdout
    for index in off:
        boards[index].start()
    for index in broken - off:
        boards[index].unpin()
    mended = json.loads(boards.edgellm(*fleet, "--waves", "100%").stdout)
    changed = {int(name.removeprefix("board")) for name, b in mended["boards"].items() if b["state"] == "changed"}
    assert changed == set(range(n)) - expected, mended
    return (
        f"waves {waves}, {budget} may fail, {len(off)} off, {len(broken - off)} distrusting: {len(expected)} of {n} "
        f"boards got it in {elapsed_s:.0f} s, exit {code}; mended, the other {len(changed)}"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--boards", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    shared = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=shared) as name, running_boards(Path(name), args.boards) as boards:
        (boards.folder / "keys").mkdir()
        for number in range(args.rounds):
            draw = random.Random(args.seed * 1000 + number)
            print(f"round {number}: {one_round(boards, draw, number)}", flush=True)
    print(f"{args.rounds} rounds with {args.boards} boards, seed {args.seed}: every board had what was promised")
    return 0


if __name__ == "__main__":
    sys.exit(main())
