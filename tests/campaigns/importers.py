"""Mutated checkpoints: each is read as it should be, or refused with one line that names the file.

    python -m tests.campaigns.importers --n 2000 --seed 1 [--only awq …]

Small directories of every kind (tests/campaigns/importer_files.py) get JSON files with other values, missing and
doubled fields, broken text, tensors with other shapes, dtypes and places, cut and longer files. Loading, what the
architecture makes of config.json, and reading a little of every tensor must end within LIMIT_S, in MEMORY_BYTES more
than was in use before, and without any error but crosscompile's own, which names a file of the checkpoint. What is read
is compared with an independent reading (tests/campaigns/importer_readings.py). Stops at the first that is wrong, and
keeps it.
"""

from __future__ import annotations

import argparse
import random
import resource
import shutil
import signal
import sys
import tempfile
from collections import Counter
from pathlib import Path
from types import FrameType

import numpy as np

from crosscompile import checkpoint, models
from crosscompile.errors import CompileError, ConfigError
from crosscompile.pieces import Rows
from tests.campaigns.importer_files import ADAPTER, KINDS, Original, mutate
from tests.campaigns.importer_readings import Stored, expected_rows

LIMIT_S = 10.0
"""Of processor time: the machine may do other things."""
MEMORY_BYTES = 1 << 30


def _late(signum: int, frame: FrameType | None) -> None:
    raise AssertionError(f"it took more than {LIMIT_S} s")


def judge(folder: Path, original: Original) -> str:
    """What became of it: "read", or the error's type. Raises whatever it should not have raised."""
    signal.setitimer(signal.ITIMER_PROF, LIMIT_S)
    try:
        source = checkpoint.load(folder, folder / ADAPTER if original.adapter else None)
        if original.kind != "config":
            _read_all(folder, original, source)
        architecture = models.name_of(source.config)
        if architecture not in models.FAMILIES:
            raise models.unknown(architecture, source.config)
        made = models.FAMILIES[architecture].design(source.config)
        for names in made.sources.values():
            for each in names:
                try:
                    stored = Rows(source, each)
                except CompileError as error:  # missing, which not every network minds
                    _check(error, folder)
                    continue
                if stored.fits and stored.shape:
                    stored.read(0, min(2, stored.shape[0]))
    except CompileError as error:
        _check(error, folder)
        return type(error).__name__
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    return "read"


def _read_all(folder: Path, original: Original, source: checkpoint.Checkpoint) -> None:
    """The first rows of every tensor, and integers where it has some, against an independent reading."""
    known = Stored()
    for name, info in source.tensors.items():
        try:
            source.info(name)
        except CompileError as error:  # of a type that is not read, which the network may not want
            _check(error, folder)
            continue
        read = source.read(name, slice(0, 2) if info.shape else None)
        wanted = expected_rows(folder, original, source, name, known)
        if wanted is not None:
            np.testing.assert_allclose(read, wanted, rtol=1e-5, atol=1e-6, err_msg=name)
        kept = source.integers(name, slice(0, 2)) if len(info.shape) == 2 else None
        if kept is not None:
            q, scale = kept
            again = q.reshape(len(q), -1, 32) * scale.astype(np.float32)[..., None]
            np.testing.assert_array_equal(again.reshape(q.shape), read)


def _check(error: CompileError, folder: Path) -> None:
    """One line, with the file's name and not without end."""
    text = str(error)
    assert text.isprintable(), ascii(text[:3000])
    assert len(text) < 2500, text[:3000]
    names_one = str(folder) in text or (isinstance(error, ConfigError) and "config.json" in text)
    assert names_one, text


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--n", type=int, default=2000, help="checkpoints")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", nargs="*", choices=sorted(KINDS), default=sorted(KINDS), help="kinds of checkpoints")
    arguments = parser.parse_args()
    rng = random.Random(arguments.seed)
    outcomes: Counter[tuple[str, str]] = Counter()
    signal.signal(signal.SIGPROF, _late)
    with tempfile.TemporaryDirectory() as root:
        originals = {kind: KINDS[kind]() for kind in arguments.only}
        folder = Path(root) / "fuzzed"
        for original in (made for kind in originals.values() for made in kind):
            original.write(folder)
            assert judge(folder, original) == "read", original.kind  # and imports what is imported late
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY_BYTES, used + MEMORY_BYTES))
        for index in range(arguments.n):
            original = rng.choice(originals[rng.choice(arguments.only)])
            original.write(folder)
            mutate(folder, original, rng)
            try:
                outcomes[original.kind, judge(folder, original)] += 1
            except BaseException:
                kept = Path(tempfile.gettempdir()) / f"importers-{arguments.seed}-{index}"
                shutil.copytree(folder, kept, dirs_exist_ok=True)
                print(f"{original.kind} checkpoint {index} of seed {arguments.seed}, kept as {kept}:")
                raise
    for kind in arguments.only:
        found = {outcome: n for (of, outcome), n in outcomes.most_common() if of == kind}
        print(f"{sum(found.values())} {kind} checkpoints: {', '.join(f'{n} {what}' for what, n in found.items())}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
