"""Turn a checkpoint into a bundle for one board.

MODEL is a Hugging Face checkpoint directory (config.json, safetensors, tokenizer.json), a Hub id, org/name, or a GGUF
file, here or on the Hub (org/name/FILE.gguf). The bundle is a directory: run it in place with
`DIR/edgellm-rt run DIR -p "…"`, or send it with `edgellm deploy`.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crosscompile.kinds import KINDS
from crosscompile.models import schemes
from crosscompile.target import DEVICES
from edgellm import prefix
from edgellm.boards import Board, find_board
from edgellm.compile import DEFAULT_CONTEXT, Compilation, build
from edgellm.errors import UsageError
from edgellm.keygen_cli import add_signing, ask_passphrase
from edgellm.precision import Options, Wish, parse_bytes
from edgellm.terminal import size

if TYPE_CHECKING:
    from edgellm.quality import Gate

SCHEMES = tuple(schemes.SCHEMES)

_MOST_LAYERS = 1024
"""crosscompile.models.design.MOST."""

SCHEMES_HELP = """\
schemes: numbers of a weight, bits of it with what a group of 32 shares, and when to take it
  w4a8   −8 to 7             4.5    the default; fastest
  n4a8   16 uneven levels    4.5    nearer to the original than w4a8; keeps the integers of GGUF's IQ4_NL
  u4a8   0 to 15, and zero   4.6    keeps the integers of AWQ and of asymmetric GPTQ
  w3a8   8 levels            3.5    where bytes decide; calibrate it
  w2a8   4 levels            2.5    where nothing else fits; calibrate it, and measure it
  w8a8   −127 to 127         8.5    hardly different from the original
  u8a8   0 to 255, and zero  8.75   a little nearer still
  f16, f32                          weights and activations in floats
With g64 or g128 behind the kind, as in w4g128a8, so many weights share a scale: 4.25 or 4.13 bits instead of 4.5, a
little further from the original. AWQ and GPTQ checkpoints mostly have groups of 128: u4g128a8 keeps their integers."""


def add_scheme_arguments(parser: argparse.ArgumentParser) -> None:
    """--scheme and its parts, for every command that compiles."""
    parser.epilog = f"{parser.epilog}\n\n{SCHEMES_HELP}" if parser.epilog else SCHEMES_HELP
    parser.add_argument(
        "--scheme", choices=SCHEMES, metavar="SCHEME", default="w4a8", help="weights and activations (default: w4a8)"
    )
    parser.add_argument(
        "--embedding", choices=SCHEMES, metavar="SCHEME", help="scheme of the token embedding, if it should differ"
    )
    parser.add_argument(
        "--head", choices=SCHEMES, metavar="SCHEME", help="scheme of the output head, if it should differ"
    )
    parser.add_argument("--kv", choices=("f16", "i8", "f32"), help="type of the KV cache (default: f16)")
    parser.add_argument(
        "--context",
        type=int,
        metavar="N",
        help=f"positions that must fit in memory (default: {DEFAULT_CONTEXT})",
    )


def add_prefix_arguments(parser: argparse.ArgumentParser) -> None:
    """--system-prompt and --tools, for the commands whose bundle goes to a board."""
    group = parser.add_argument_group(
        "what conversations begin with",
        "It is computed here and shipped in the bundle: the first answer need not wait for it on the board.",
    )
    group.add_argument(
        "--system-prompt",
        metavar="FILE|TEXT",
        help="the model's system prompt: conversations have it that bring none of their own",
    )
    group.add_argument(
        "--tools",
        type=Path,
        metavar="FILE",
        help="tools that clients offer, a JSON array as in OpenAI's API; those that offer the same begin with them",
    )


def add_lora(parser: argparse.ArgumentParser) -> None:
    """--lora, for the commands that make a bundle for a board."""
    parser.add_argument(
        "--lora", type=Path, metavar="DIR", help="a PEFT adapter (LoRA, DoRA) to merge into the weights"
    )


def add_device(parser: argparse.ArgumentParser) -> None:
    """--device, for the commands that make a bundle for a board."""
    parser.add_argument(
        "--device",
        choices=DEVICES,
        default="cpu",
        help="what computes: the board's processor, its GPU through Vulkan, or both: the GPU where it works, else the "
        "processor (default: cpu)",
    )
    parser.add_argument(
        "--gpu-layers",
        type=_gpu_layers,
        metavar="N",
        help="split the model: its first N layers run on the GPU, the others on the processor, for a GPU whose memory "
        "does not hold them all; `edgellm deploy` measures both with auto, and takes what is fastest",
    )


def _gpu_layers(text: str) -> int | str:
    if text == "auto":
        return text
    if not text.isdecimal() or not 1 <= int(text) <= _MOST_LAYERS:
        raise argparse.ArgumentTypeError("a number of layers from 1, or auto")
    return int(text)


def gpu_layers_of(args: argparse.Namespace) -> int | None:
    """What --gpu-layers means where nothing is measured."""
    if args.gpu_layers == "auto":
        raise UsageError(
            "--gpu-layers auto measures on one board: it goes to `edgellm deploy --board`; here, give a number"
        )
    if args.gpu_layers is not None and args.device not in (None, DEVICES[0]):
        raise UsageError(f"--gpu-layers says where layers run: leave out --device {args.device}")
    found: int | None = args.gpu_layers
    return found


def add_quality_arguments(parser: argparse.ArgumentParser) -> None:
    """--calibrate, --budget, --eval and --max-kl, for the commands that make a bundle for a board."""
    group = parser.add_argument_group(
        "quality",
        "TEXTS is a .jsonl file of conversations or texts, or plain text, as `edgellm eval` takes it; what a model is "
        "calibrated on should resemble what it will read, and what it is judged by should be other text.",
    )
    group.add_argument(
        "--calibrate",
        type=Path,
        metavar="TEXTS",
        help="round weights so that they do best on these texts: the same size and speed, less error; takes minutes",
    )
    group.add_argument(
        "--budget",
        metavar="SIZE",
        help="most bytes for the weights (2.3GB, 900MB): each tensor gets 4 bits or 8, the most sensitive ones first, "
        "and 3 or 2 only where 4 do not fit",
    )
    group.add_argument(
        "--eval", type=Path, metavar="TEXTS", help="measure what the scheme changes and put the card into the bundle"
    )
    group.add_argument(
        "--max-kl",
        type=float,
        metavar="NATS",
        help="with --eval: refuse to make a bundle whose KL divergence from f32 is larger",
    )


def wish_of(args: argparse.Namespace) -> Wish:
    """What --calibrate and --budget ask for."""
    four = [scheme for scheme, kind in schemes.WEIGHT_KINDS.items() if kind in KINDS and KINDS[kind].bits == 4]
    if args.budget is not None and ((args.scheme or "w4a8") not in four or args.embedding or args.head):
        raise UsageError(
            f"--budget chooses bits itself; leave out --embedding and --head, and of --scheme say at most which 4 bits "
            f"it is to take: {', '.join(four)}"
        )
    return Wish(args.calibrate, None if args.budget is None else parse_bytes(args.budget))


def gate_of(args: argparse.Namespace) -> Gate | None:
    """What --eval and --max-kl ask for."""
    if args.eval is None:
        if args.max_kl is not None:
            raise UsageError("--max-kl needs --eval TEXTS, on which the divergence is measured")
        return None
    from edgellm.quality import Gate

    return Gate(args.eval, args.max_kl)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `edgellm compile`."""
    parser.add_argument(
        "model", metavar="MODEL", help="checkpoint directory, Hub id (org/name[@revision]) or .gguf file"
    )
    parser.add_argument("--board", required=True, help="a type or an instance; `edgellm boards` lists them")
    parser.add_argument("-o", "--output", type=Path, metavar="DIR", required=True, help="where the bundle is written")
    add_scheme_arguments(parser)
    add_prefix_arguments(parser)
    add_lora(parser)
    add_quality_arguments(parser)
    add_signing(parser)
    add_device(parser)
    parser.add_argument("--dump", type=Path, metavar="DIR", help="write the IR after each phase into this directory")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")


def options_of(args: argparse.Namespace) -> Options:
    """The Options that add_scheme_arguments' arguments mean."""
    return Options(args.scheme, args.embedding, args.head, args.kv)


def main(args: argparse.Namespace) -> int:
    """Runs `edgellm compile`."""
    started = time.monotonic()
    key = None
    if args.sign is not None:
        from edgellm.signing import load_private

        key = load_private(args.sign, ask_passphrase)  # first of all: a wrong passphrase should not cost a compilation
    wanted, wish, gate = prefix.read(args.system_prompt, args.tools), wish_of(args), gate_of(args)
    with StageDisplay(quiet=args.json) as display:
        made = build(
            args.model,
            args.board,
            options_of(args),
            args.output,
            context=args.context,
            prefix=wanted,
            dump=args.dump,
            progress=display.update,
            lora=args.lora,
            device=args.device,
            wish=wish,
            gate=gate,
            gpu_layers=gpu_layers_of(args),
        )
    device = made.bundle.manifest["target"]["device"]
    if device != "cpu":
        warn_of_gpu(find_board(args.board), device)
    if key is not None:
        from edgellm.signing import sign

        sign(made.bundle, key)
    elapsed = time.monotonic() - started
    signed_by = None if key is None else key.public.hex
    if args.json:
        print(json.dumps({**as_json(made, elapsed), "signed_by": signed_by}))
    else:
        show(made, elapsed, signed_by)
    return 0


def warn_of_gpu(board: Board, device: str) -> None:
    """Says so where a board's processor is known to be the faster one."""
    if board.vulkan is not None and board.vulkan.times_slower is not None:
        gpu, times = board.vulkan.device, board.vulkan.times_slower
        text = f"{board.name}'s GPU ({gpu}) takes about {times} times as long as its processor"
        then = ", which it takes unless told otherwise" if device == "both" else "; --device cpu is the better choice"
        print(f"edgellm: note: {text}{then}", file=sys.stderr)


class StageDisplay:
    """One line with the stage, and a bar where the stage counts bytes. Nothing where the output is no terminal."""

    def __init__(self, quiet: bool = False) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description:<24}"),
            BarColumn(bar_width=30),
            TextColumn("{task.percentage:>3.0f}%"),
            TimeElapsedColumn(),
            console=Console(stderr=True),
            transient=True,
            disable=quiet or not sys.stderr.isatty(),
        )
        self._task = self._progress.add_task("starting", total=None)

    def __enter__(self) -> StageDisplay:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def update(self, stage: str, done: int, total: int) -> None:
        """The callback that edgellm.compile takes."""
        self._progress.update(self._task, description=stage, completed=done, total=total or None)


def as_json(made: Compilation, elapsed_s: float) -> dict[str, Any]:
    """What --json prints. Sizes in bytes, times in seconds."""
    manifest = made.bundle.manifest
    return {
        "path": str(made.bundle.path),
        "sha256": made.bundle.sha256,
        "bytes": made.bundle.n_bytes,
        "model": manifest["model"],
        "scheme": manifest["scheme"],
        "target": manifest["target"],
        "memory": manifest["memory"],
        "quality": manifest.get("quality"),
        "prefix_tokens": manifest.get("prefix", {}).get("tokens", 0),
        **made.report,
        "cached": made.cached,
        "elapsed_s": round(elapsed_s, 3),
    }


def show(made: Compilation, elapsed_s: float, signed_by: str | None) -> None:
    """Prints what was compiled, sizes and seconds per stage."""
    from rich.console import Console
    from rich.table import Table

    from edgellm.quality import sentence

    manifest, report = made.bundle.manifest, made.report
    model, scheme, memory = manifest["model"], manifest["scheme"], manifest["memory"]
    statistics = report["statistics"]
    parts = f"embedding {scheme['embedding']}, head {scheme['head']}, KV {scheme['kv']}"
    saved = 1 - memory["arena_bytes"] / max(memory["arena_unplanned_bytes"], 1)
    table = Table.grid(padding=(0, 2))
    table.add_row(
        "model", f"{model['name']}: {model['architecture']}, {statistics['parameters'] / 1e6:,.1f} M parameters"
    )
    table.add_row("scheme", f"{scheme['name']} ({parts})")
    table.add_row("target", f"{manifest['target']['arch']}, tier {manifest['target']['tier']}")
    before = ", compiled before" if statistics.get("kernels_kept") and not made.cached else ""
    table.add_row("kernels", f"{statistics['kernels']} in {size(statistics['kernel_bytes'])}{before}")
    weights = f"{size(memory['weight_bytes'])}, {statistics['bits_per_weight']:.2f} bits per weight"
    table.add_row("weights", weights)
    if mixed := scheme.get("tensors"):
        counts = ", ".join(f"{list(mixed.values()).count(kind)} {kind}" for kind in dict.fromkeys(mixed.values()))
        table.add_row("", f"of the tensors {counts}, because of the budget")
    if statistics.get("parameters_calibrated"):
        share = statistics["parameters_calibrated"] / statistics["parameters"]
        table.add_row("", f"{share:.0%} of the weights calibrated")
    if card := manifest.get("quality"):
        table.add_row("quality", sentence(card))
    kept, again = statistics.get("parameters_kept", 0), statistics.get("parameters_quantized_again", 0)
    if kept or again:
        total = statistics["parameters"]
        text = f"{kept / total:.0%} of the weights are the source's own integers"
        hint = f"; `--scheme {keeping}a8` keeps them" if (keeping := statistics.get("keeping")) else ""
        table.add_row("", f"{text}, {again / total:.0%} were quantized a second time{hint}" if again else text)
    unplanned = f"without planning {size(memory['arena_unplanned_bytes'])}, {saved:.0%} saved"
    table.add_row("arena", f"{size(memory['arena_bytes'])} ({unplanned})")
    if memory["kv_bytes_per_token"]:
        table.add_row("KV cache", f"{size(memory['kv_bytes_per_token'])} per token")
    if memory.get("state_bytes_per_session"):
        table.add_row("state", f"{size(memory['state_bytes_per_session'])} per session, however long it is")
    if shipped := manifest.get("prefix"):
        what = " and ".join(
            word for word, has in (("system prompt", "system" in shipped), ("tools", shipped["tools"])) if has
        )
        n_bytes = next(file.n_bytes for file in made.bundle.files if file.path == shipped["file"])
        table.add_row("prefix", f"{shipped['tokens']} tokens of {what}, {size(n_bytes)}")
    if manifest["golden"]:
        how = "within a tolerance" if "logits" in manifest["golden"][0] else "exactly"
        table.add_row("golden", f"{len(manifest['golden'])} prompts that the board must answer {how}")
    if made.cached:
        table.add_row("time", f"{elapsed_s:.1f} s, from the cache")
    else:
        stages = ", ".join(f"{stage} {seconds:.1f}" for stage, seconds in report["seconds"].items() if stage != "total")
        table.add_row("time", f"{elapsed_s:.1f} s ({stages})")
    if signed_by is not None:
        table.add_row("signed", f"by key {signed_by[:16]}")
    table.add_row("bundle", f"{made.bundle.path} ({size(made.bundle.n_bytes)})")
    Console(soft_wrap=True, highlight=False).print(table)
