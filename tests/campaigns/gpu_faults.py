"""Single faults in the kernels of small models, and whether `edgellm compare --device vulkan` names the kernel.

    python -m tests.campaigns.gpu_faults [--seed N] [--count N] [--through COMMAND]

Of each model, its sound bundle is compared first, in which nothing may be wrong. Then `count` copies, each with one
instruction or constant of one module changed. A fault that is not found is followed once more: where that gives the
same bits, it has no effect on this prompt. --through: how the sound bundle's program is started there, for another
lavapipe (`~/.cache/edgellm/lavapipe-sid/run`, which `make matrices` fetches); then no faults are tried.
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from crosscompile.target import target_of_tier
from edgellm import bundle as bundles
from edgellm import launches
from edgellm.compile import compile_model
from edgellm.errors import EdgeError
from edgellm.gpu_compare import GpuBundle, Trial, judged, lavapipe, open_gpu_bundle, open_reference
from edgellm.local_remote import LocalProcess, LocalRemote
from tests.compile.test_model import host_tiers
from tests.compile.test_vulkan_families import add_half, prepare
from tests.emulated.test_bits import make_bundle
from tests.server import MODEL
from tests.shader_faults import fault, modules_of, with_modules
from tests.shaders import DESKTOP

MODELS = (
    ("demo", "w4a8"),
    ("gemma2-caps", "w4a8"),
    ("mixtral-tied", "f16"),
    ("qwen2-moe-shared", "w4a8"),
    ("rwkv7-many-heads", "w8a8"),
    ("mamba-tied", "f16"),
    ("phi3-long", "w4a8 i8"),
    ("qwen3-biases", "w8a8"),
)
"""The demo model with the kernels of lavapipe's class, the others with those of desktop GPUs."""
TOKENS, ROWS = [123, 81, 89, 117, 75, 101, 109, 29, 7], 8
PATIENCE_S = 60.0


class Through(LocalRemote):
    """This machine, where a command starts programs."""

    def __init__(self, name: str, through: Sequence[str]) -> None:
        super().__init__(name, lavapipe())
        self._through = through

    def start(self, argv: Sequence[str], *, silence_s: float = 60.0) -> LocalProcess:
        before = self._through if "trace" in argv[1:2] else ()
        process = super().start([*before, *argv], silence_s=min(silence_s, PATIENCE_S))
        assert isinstance(process, LocalProcess)
        return process


def make(name: str, scheme: str, folder: Path) -> Path:
    """A bundle for lavapipe."""
    if name == "demo":
        return compile_model(MODEL, "local", scheme, folder / "bundle", device="vulkan").path
    folder.mkdir()
    tier = host_tiers()[-1]
    prepare(folder, name)
    bundle = make_bundle(folder / "bundle", folder / "model", tier, scheme, short=True, stop_id=2)
    add_half(bundle, folder / "model", target_of_tier(tier).on_gpu(DESKTOP), scheme)
    return bundles.read(bundle).path


def try_faults(sound: Path, reference: GpuBundle, rng: random.Random, count: int, folder: Path) -> Counter[str]:
    """How many faults were found, named wrongly, missed, had no effect, or ended the program."""
    modules, found = modules_of(sound), Counter[str]()
    used = {step.kernel for (_, n), f in reference.plan.functions.items() if n in (1, ROWS) for step in f.steps}
    while found.total() < count:
        name, code, what = fault(sound, rng)
        if name not in used:
            continue
        same = {other for other, module in modules.items() if module == modules[name]}
        changed = {other: code if other in same else module for other, module in modules.items()}
        copy = with_modules(sound, changed, folder / "faulty")
        board = open_gpu_bundle(Through("board", ()), "model", str(copy), reference.model.program)
        trial = Trial(board, reference, TOKENS, ROWS)
        try:
            verdict, _ = judged(trial, False)
            result = "found" if verdict.wrong and set(verdict.kernels) <= same else "named wrongly"
            if not verdict.wrong:
                result = "missed" if _shows(trial, reference, folder) else "no effect"
        except EdgeError as error:
            result = "ended, named" if any(kernel in str(error) for kernel in same) else f"ended: {error}"
        print(f"  {name}, {what}: {result}", flush=True)
        found[result.partition(":")[0]] += 1
        shutil.rmtree(copy)
    return found


def _shows(trial: Trial, reference: GpuBundle, folder: Path) -> bool:
    """Whether any bit of the trace is another one than the reference's."""
    trial.run(folder)
    options = ("--device", "vulkan", "--follow", str(folder / "trace"))
    ours = launches.run_trace(reference.model, reference.plan, TOKENS, ROWS, options, data=True)
    return (folder / "trace").read_bytes().partition(b"\n")[2] != ours.partition(b"\n")[2]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--count", type=int, default=30)
    parser.add_argument("--through", default="")
    parser.add_argument("--model", choices=[name for name, _ in MODELS], action="append")
    args = parser.parse_args()
    rng, failed = random.Random(args.seed), False
    total = Counter[str]()
    for name, scheme in MODELS:
        if args.model and name not in args.model:
            continue
        with tempfile.TemporaryDirectory(prefix="edgellm-faults-") as folder:
            sound = make(name, scheme, Path(folder) / "sound")
            reference = open_reference(sound)
            remote = Through("board", [args.through] if args.through else [])
            board = open_gpu_bundle(remote, "model", str(sound), reference.model.program)
            verdict, _ = judged(Trial(board, reference, TOKENS, ROWS), False)
            print(f"{name} {scheme}: {len(verdict.wrong)} of {verdict.n_steps} steps wrong on {verdict.gpu}")
            failed = failed or bool(verdict.wrong)
            if not args.through:
                total += try_faults(sound, reference, rng, args.count, Path(folder))
    print(", ".join(f"{what}: {n}" for what, n in total.most_common()))
    return int(failed or total["named wrongly"] > 0)


if __name__ == "__main__":
    sys.exit(main())
