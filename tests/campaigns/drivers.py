"""Every kernel with the compilers of real boards' drivers, without the boards: do they take it, and what does it cost?

    python -m tests.campaigns.drivers [MODEL …] [--chips v3d-7.1,mali-g610] [--schemes w4a8,w8a8] [--families]

For each GPU of tests/drivers.py its driver is asked what it allows, as `edgellm deploy` asks a board's, kernels are
made for that, and the driver compiles them. MODEL: random:SHAPE. --families: the small networks of all families
instead, or too. Kernels that lack registers, whose values are then kept in memory, are counted and named, the worst
first; with --against, so are those that changed most. Then the runtime itself runs a small model's proof there, whole:
as nothing is computed, the proof has to say so. Fails where a driver refuses a kernel or does not survive it, or the
proof says anything else.

Drivers are Mesa's, of Debian sid or, with --suite trixie, of Debian 13 (whose stand-in for V3D is too old for it),
fetched and not installed (700 MB beside the other caches). The makers' own drivers, which most phones have, are not
among them.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from crosscompile.errors import CompileError
from crosscompile.runtime import build_runtime
from crosscompile.spirv.capabilities import Gpu
from crosscompile.spirv.container import pack_modules
from crosscompile.target import Target
from edgellm import gpu_facts, shapes, virtual_parts
from edgellm.boards import Board, load_board
from edgellm.errors import EdgeError
from tests.drivers import CHIPS, SUITES, Chip, command, compiled, there

MODELS = ("random:smollm2-135m", "random:llama-3.2-1b", "random:llama-2-7b")
SCHEMES = ("w4a8", "w8a8", "f16")
FAMILIES = Path(__file__).resolve().parents[1] / "data" / "families.json"
SMALL = "random:tiny"
_BOARDS = {"x86_64": "local", "aarch64": "orangepi5"}
_WORST = 6
_UNITS = ("Instruction Count", "Instructions", "Static cycle count", "Code size")
"""In which drivers say how much there is of a kernel: Adreno's and V3D's; most; NVK; any."""
_SAYS = "KERNEL_FAILED"
_PATIENCE_S = 900


def board_for(chip: Chip, suite: str = SUITES[0]) -> Board:
    """A board with the chip, of which its driver says what it allows. Raises RuntimeError if it lacks the floor."""
    board = load_board(_BOARDS[chip.arch])
    program = build_runtime(board.target().on_gpu(Gpu()))
    done = subprocess.run(
        [str(command(chip, suite)), str(program), "gpus"], capture_output=True, text=True, check=False
    )
    devices = gpu_facts.read(done.stdout, chip.name)
    gpu = gpu_facts.chosen(devices)
    if gpu is None:
        lacks = ", ".join(f"{each.name} lacks {each.lacks}" for each in devices) or done.stderr.strip()
        raise RuntimeError(f"{chip.name}: {lacks}")
    assert board.vulkan is not None
    section = gpu_facts.asked(replace(board.vulkan, subgroup=gpu.subgroup if gpu.matrices else 0), gpu)
    print(f"{chip.name:14} {gpu_facts.describe(section)}", flush=True)
    return replace(board, vulkan=section)


def proof(chip: Chip, board: Board, suite: str = SUITES[0]) -> str | None:
    """What is wrong with how the runtime's proof ends where nothing is computed; None if nothing is."""
    from edgellm.compile import build
    from edgellm.precision import Options

    bundle = build(SMALL, board, Options("w4a8"), device="both").bundle.path
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "bundle"
        shutil.copytree(bundle, copy)  # it writes beside what it proves
        argv = [str(command(chip, suite)), str(copy / "edgellm-rt"), "golden", str(copy), "--device", "vulkan"]
        done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=_PATIENCE_S)
    return None if _SAYS in done.stderr else f"{done.returncode}, {done.stderr.strip()[-300:] or done.stdout[-300:]}"


def configurations(models: Sequence[str], families: bool) -> Iterator[tuple[str, dict[str, Any]]]:
    """(name, config.json) of what is compiled."""
    for model in models:
        folder, name = shapes.make(model)
        yield name, json.loads((folder / "config.json").read_text())
    if families:
        for name, entry in json.loads(FAMILIES.read_text()).items():
            yield name, entry["config"]


def modules_of(config: dict[str, Any], target: Target, scheme: str) -> dict[str, bytes]:
    """The modules of a network's kernels, by the kernel's name."""
    from crosscompile.models.schemes import scheme_for
    from crosscompile.program import compile_model, ladder_for

    body, _, kv = scheme.partition(" ")
    found = compile_model(config, target, scheme_for(body, kv=kv or None), ladder=ladder_for(target)).kernels
    return modules_in(found)


def modules_in(code: bytes) -> dict[str, bytes]:
    """The modules of a kernels.spv, by the kernel's name."""
    words = memoryview(code[: len(code) // 4 * 4]).cast("I")
    entries = [words[4 + 4 * i : 8 + 4 * i] for i in range(words[2])]
    return {code[n : n + size].decode(): code[at : at + length] for n, size, at, length in entries}


def run(
    chip: Chip, board: Board, models: Sequence[tuple[str, dict[str, Any]]], schemes: Sequence[str], suite: str
) -> list[dict[str, Any]]:
    """What the chip's driver makes of each different module: its first name, and Compiled's fields."""
    target = board.gpu_target()
    gpu = target.gpu
    assert gpu is not None
    named: dict[str, bytes] = {}
    seen: set[bytes] = set()
    for name, config in models:
        for scheme in schemes:
            for kernel, code in modules_of(config, target, scheme).items():
                digest = hashlib.sha256(code).digest()
                if digest not in seen:
                    seen.add(digest)
                    named[f"{name}/{scheme}/{kernel}"] = code
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "kernels.spv"
        file.write_bytes(pack_modules(named, gpu))
        return [
            {**asdict(each), "spills": each.spills, "bytes": len(named[each.kernel])}
            for each in compiled(chip, file, suite)
        ]


def report(chip: Chip, found: Sequence[dict[str, Any]]) -> bool:
    """Prints what came of a chip; whether its driver took every kernel."""
    refused = [each for each in found if each["result"] != 0]
    spilled = sorted((each for each in found if each["spills"]), key=lambda each: -each["spills"])
    slowest = max(found, key=lambda each: each["ms"])
    print(
        f"{chip.name:14} {len(found)} kernels, {len(refused)} refused, {len(spilled)} lack registers; "
        f"the slowest took {slowest['ms'] / 1000:.1f} s ({slowest['kernel']})"
    )
    for each in refused:
        what = f"Vulkan error {each['result']}" if each["result"] is not None else "the driver crashed"
        print(f"    refused  {each['kernel']}: {what}")
    for each in spilled[:_WORST]:
        print(f"    {each['spills']:5} times to and from memory: {each['kernel']}")
    return not refused


def compare(found: Sequence[dict[str, Any]], before: Sequence[dict[str, Any]]) -> None:
    """Prints what became of the kernels that an earlier run has too, in the units that the driver counts in."""
    earlier = {each["kernel"]: each for each in before if each["result"] == 0}
    pairs = [(earlier[each["kernel"]], each) for each in found if each["result"] == 0 and each["kernel"] in earlier]
    unit = next((unit for unit in _UNITS if all(unit in each["statistics"] for pair in pairs for each in pair)), None)
    if not pairs or unit is None:
        print("    nothing that could be compared")
        return
    sizes = [(old["statistics"][unit], new["statistics"][unit]) for old, new in pairs]
    total = " -> ".join(f"{sum(size):.0f}" for size in zip(*sizes, strict=True))
    spills = " -> ".join(str(sum(each["spills"] for each in side)) for side in zip(*pairs, strict=True))
    print(f"    {len(pairs)} kernels of both: {unit.lower()} {total}, times to and from memory {spills}")
    by_change = sorted(zip(sizes, pairs, strict=True), key=lambda each: abs(each[0][1] / each[0][0] - 1), reverse=True)
    for (old_size, new_size), (old, new) in by_change[:_WORST]:
        if old_size != new_size or old["spills"] != new["spills"]:
            print(f"    {old_size:7.0f} -> {new_size:.0f}, {old['spills']} -> {new['spills']}: {new['kernel']}")


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="drivers", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("models", nargs="*", metavar="MODEL", help=f"default: {' '.join(MODELS)}")
    parser.add_argument("--chips", default=",".join(CHIPS), help=f"of {', '.join(CHIPS)}")
    parser.add_argument("--suite", choices=SUITES, default=SUITES[0], help="of Debian, whose Mesa it is")
    parser.add_argument("--schemes", default=",".join(SCHEMES), help='such as "w4a8,w4a8 i8"')
    parser.add_argument("--families", action="store_true", help="the small networks of all families, too")
    parser.add_argument("--json", type=Path, metavar="FILE", help="gets all of it")
    parser.add_argument("--against", type=Path, metavar="FILE", help="an earlier one's: what became of its kernels")
    args = parser.parse_args(arguments)
    try:
        before = json.loads(args.against.read_text()) if args.against is not None else {}
    except (OSError, ValueError) as error:
        parser.error(f"--against: {error}")
    chips = args.chips.split(",")
    if unknown := sorted({*chips} - {*CHIPS}):
        parser.error(f"--chips: there is no {unknown[0]}; there are {', '.join(CHIPS)}")
    reason = virtual_parts.missing_tool() if platform.machine() == "x86_64" else "these drivers are run on x86-64 alone"
    if reason is not None:
        parser.error(reason)
    try:
        models = list(configurations(args.models or (() if args.families else MODELS), args.families))
    except EdgeError as error:
        parser.error(str(error))
    document, good = {}, True
    for name in chips:
        try:
            chip = there(CHIPS[name], args.suite)
            board = board_for(chip, args.suite)
            found = run(chip, board, models, args.schemes.split(","), args.suite)
            wrong = proof(chip, board, args.suite)
        except (EdgeError, CompileError, OSError, RuntimeError, subprocess.SubprocessError) as error:
            print(f"{name:14} {error}")
            good = False
            continue
        good = report(chip, found) and wrong is None and good
        if name in before:
            compare(found, before[name])
        if wrong is not None:
            print(f"    the proof ended with {wrong}")
        document[name] = found
    if args.json:
        args.json.write_text(json.dumps(document) + "\n")
    return 0 if good else 1


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
