"""Shows that a second thread never costs anything: speed and slowest steps, idle and beside a program on one core.

    python -m tests.campaigns.threads BUNDLE --generate 256

Prints a table: for one thread, one per core, and what the program chooses by itself. The load is a loop bound to the
last core that this process may use, for as long as the measurement takes.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path


@contextmanager
def load(core: int) -> Iterator[None]:
    """A program that never sleeps, on one core."""
    loop = subprocess.Popen([sys.executable, "-c", f"import os; os.sched_setaffinity(0, [{core}])\nwhile True: pass"])
    try:
        yield
    finally:
        loop.kill()
        loop.wait()


def bench(program: Path, bundle: Path, options: Sequence[str]) -> dict[str, float]:
    command = [str(program), "bench", str(bundle), "--json", *options]
    answer: dict[str, float] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    return answer


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--program", type=Path, metavar="FILE", help="another edgellm-rt than the bundle's own")
    parser.add_argument("--prompt", type=int, default=128, metavar="N")
    parser.add_argument("--generate", type=int, default=256, metavar="N")
    parser.add_argument("--repeat", type=int, default=3, metavar="N")
    args = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))
    sizes = [f"--{name}={getattr(args, name)}" for name in ("prompt", "generate", "repeat")]
    print(f"{'other load':12}{'threads':>10}{'prefill tok/s':>15}{'decode tok/s':>14}{'median ms':>11}{'p99 ms':>9}")
    for name, surroundings in (("none", nullcontext()), (f"core {cores[-1]}", load(cores[-1]))):
        with surroundings:
            for threads in ("1", str(len(cores)), "auto"):
                chosen = [] if threads == "auto" else [f"--threads={threads}"]
                m = bench(args.program or args.bundle / "edgellm-rt", args.bundle, [*sizes, *chosen])
                print(
                    f"{name:12}{threads:>10}{m['prefill_tok_s']:15.1f}{m['decode_tok_s']:14.1f}{m['token_ms']:11.2f}"
                    f"{m['token_p99_ms']:9.2f}",
                    flush=True,
                )
    return 0


if __name__ == "__main__":
    sys.exit(main())
