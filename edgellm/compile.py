"""From a checkpoint to a bundle: the whole line, cached by content.

TVM runs in a process of its own (edgellm.worker) and is never imported here.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crosscompile import checkpoint
from crosscompile.checkpoint import Checkpoint
from crosscompile.runtime import build_runtime, compiler, identity
from crosscompile.target import Target
from edgellm import bundle as bundles
from edgellm import cache, golden, gpu_half, hub, tuned
from edgellm import prefix as prefixes
from edgellm.boards import Board
from edgellm.bundle import Bundle
from edgellm.errors import ModelError, UnsuitableError
from edgellm.generation import generation
from edgellm.precision import PLAIN, Options, Rounding, Wish, content_of, prepare
from edgellm.prefix import Prefix
from edgellm.worker import Processes, Progress, request_of, run_worker

if TYPE_CHECKING:
    from edgellm.quality import Gate

RUNTIME_BYTES = 16 << 20
"""Program, stacks, tokenizer, logits: what edgellm-rt takes besides weights, arena and KV cache (`edgellm bench`)."""

DEFAULT_CONTEXT = 4096
"""Positions a session gets where nobody asks for more (ellm_context_options.context_length)."""


@dataclass(frozen=True)
class Compilation:
    """A bundle and how it was made. report: statistics and seconds per stage; cached: nothing was compiled now."""

    bundle: Bundle
    report: dict[str, Any]
    cached: bool


def compile_model(
    model: str | Path,
    board: Board | str,
    scheme: str = "w4a8",
    output: Path | None = None,
    *,
    embedding: str | None = None,
    head: str | None = None,
    kv: str | None = None,
    context: int | None = None,
    prefix: Prefix | None = None,
    dump: Path | None = None,
    progress: Progress | None = None,
    device: str = "cpu",
) -> Bundle:
    """Compiles a checkpoint directory or Hub id for a board and returns the bundle.

    output: directory that the bundle is copied to; None: it stays in the cache. context: positions per session that
    must fit the board's memory. prefix: system prompt and tools whose state the bundle ships (edgellm.prefix). dump:
    directory for the IR after each phase (compiles even if it is cached). device: one of crosscompile.target.DEVICES.
    Raises CompileError where the checkpoint cannot be compiled, EdgeError for all else.
    """
    options = Options(scheme, embedding, head, kv)
    made = build(
        model, board, options, output, context=context, prefix=prefix, dump=dump, progress=progress, device=device
    )
    return made.bundle


def build(
    model: str | Path,
    board: Board | str,
    options: Options,
    output: Path | None = None,
    *,
    context: int | None = None,
    prefix: Prefix | None = None,
    dump: Path | None = None,
    progress: Progress | None = None,
    lora: Path | None = None,
    device: str = "cpu",
    wish: Wish = Wish(),  # noqa: B008 - it is frozen
    gate: Gate | None = None,
    gpu_layers: int | None = None,
) -> Compilation:
    """compile_model, with statistics.

    gpu_layers: as many of the first layers run on the GPU, the others on the processor; takes the place of device.
    lora: directory of an adapter that is merged into the weights. wish: calibration and byte budget. gate: texts that
    the bundle's quality is measured on, and the least that is shipped; QualityError below that, and nothing is written.
    """
    if isinstance(board, str):
        from edgellm.boards import find_board

        board = find_board(board)
    show = progress or (lambda stage, done, total: None)
    is_split = gpu_layers is not None
    if device != "cpu" or is_split:
        compiler(board.gpu_target())  # first of all: whether there is one
    target = board.gpu_target() if device == "vulkan" else board.target()
    path, name = hub.resolve(model, show)
    show("reading the checkpoint", 0, 0)
    source = checkpoint.load(path, lora)
    name = name if lora is None else f"{name}-{lora.resolve().name}"
    if prefix is not None:
        prefixes.check(prefix, source.chat_template)
    if is_split and gate is not None:
        raise UnsuitableError(
            "what is split between devices is not judged yet; leave out --gpu-layers for the bundle with --eval"
        )
    fits = MemoryCheck(board, context)
    found = tuned.lookup(board, target.device)
    rounding = PLAIN if wish == Wish() else prepare(source, target, options, wish, show)
    made = compile_checkpoint(
        source,
        name,
        target,
        options,
        fits=None if is_split else fits,
        dump=dump,
        progress=show,
        knobs=found,
        rounding=rounding,
        layers=(gpu_layers, None) if gpu_layers is not None else None,
    )
    if gate is not None:
        from edgellm.quality import judged

        made = replace(made, bundle=judged(made.bundle, source, name, options, rounding, gate, show))
    if device == "both" or is_split:
        slower = board.vulkan.times_slower if board.vulkan is not None else None
        both = gpu_half.add(
            made.bundle,
            source,
            board.gpu_target(),
            options,
            rounding,
            times_slower=slower,
            knobs=tuned.lookup(board, "vulkan"),
            fits=fits,
            dump=dump / "vulkan" if dump is not None else None,
            show=show,
            gpu_layers=gpu_layers,
        )
        made = replace(made, bundle=both)
    if prefix is not None:

        def twin(host: Target) -> Bundle:
            return compile_checkpoint(source, name, host, options, progress=show, rounding=rounding).bundle

        needs_gpu = target.gpu is not None or is_split
        made = replace(made, bundle=prefixes.ship(made.bundle, prefix, twin, show, needs_gpu=needs_gpu))
    if output is not None:
        show("copying", 0, 0)
        made = replace(made, bundle=bundles.copy(made.bundle, Path(output)))
    return made


@dataclass(frozen=True)
class MemoryCheck:
    """Whether a model fits a board's memory with `context` positions (None: the runtime's default)."""

    board: Board
    context: int | None

    def __call__(self, memory: dict[str, int], context_length: int) -> None:
        """Raises UnsuitableError, with the numbers and what would help."""
        positions = min(self.context or DEFAULT_CONTEXT, context_length)
        kv = memory["kv_bytes_per_token"] * positions + memory.get("state_bytes_per_session", 0)
        total = memory["weight_bytes"] + memory["arena_bytes"] + kv + RUNTIME_BYTES
        ram = self.board.memory_bytes
        if total <= ram:
            return
        arena = f"arena {_mb(memory['arena_bytes'])}, " if memory["arena_bytes"] else ""
        rest = f"KV cache {_mb(kv)} for {positions} positions, runtime {_mb(RUNTIME_BYTES)}"
        parts = f"weights {_mb(memory['weight_bytes'])}, {arena}{rest}"
        room = ram - (total - memory["kv_bytes_per_token"] * positions)
        if memory["kv_bytes_per_token"] and room >= 64 * memory["kv_bytes_per_token"]:
            remedy = f"use --context {room // memory['kv_bytes_per_token'] // 64 * 64} or less"
        else:
            remedy = (
                "use a smaller scheme (--scheme w4a8 --embedding w4a8 --head w4a8), a smaller model or another board"
            )
        raise UnsuitableError(f"the model needs {_mb(total)} ({parts}), {self.board.label} has {_mb(ram)}: {remedy}")


def _mb(n_bytes: int) -> str:
    return f"{n_bytes / 1e6:,.0f} MB"


Knobs = Mapping[str, Mapping[str, int]]
"""What tuning found, by workload (edgellm.tuned)."""


Layers = tuple[int, int | None]
"""[first, end) of a network's layers; None: to the last one and the head (crosscompile.program.Layers)."""


def cache_key(
    source: Checkpoint,
    name: str,
    target: Target,
    options: Options,
    show: Progress,
    knobs: Knobs | None = None,
    rounding: Rounding = PLAIN,
    layers: Layers | None = None,
) -> tuple[str, str]:
    """(key of the finished bundle, hash of the checkpoint's content)."""
    content = content_of(source, show)
    parts = {
        "name": name,
        "checkpoint": content,
        "options": asdict(options),
        "rounding": asdict(rounding),
        "target": [target.arch, target.os, target.tier.name],
        "versions": cache.versions(),
        "sources": cache.sources_digest(),
        "python": list(sys.version_info[:2]),
        "knobs": knobs or {},
        "layers": layers,
    }
    if target.gpu is not None:
        parts["gpu"] = asdict(target.gpu)
    if (built_with := identity(target)) is not None:
        parts["runtime"] = built_with
    return cache.key_of(parts), content


def compile_checkpoint(
    source: Checkpoint,
    name: str,
    target: Target,
    options: Options,
    *,
    fits: Callable[[dict[str, int], int], None] | None = None,
    dump: Path | None = None,
    progress: Progress | None = None,
    knobs: Knobs | None = None,
    rounding: Rounding = PLAIN,
    layers: Layers | None = None,
) -> Compilation:
    """The cached bundle of a checkpoint for a target, compiled if it is not there.

    fits: called with the bundle's memory needs and context length; what it raises ends the compilation. knobs: what
    tuning found for this board. rounding: what was decided of single matrices (edgellm.precision). layers: those of a
    bundle that is split between devices; it is whole only with the others.
    """
    show = progress or (lambda stage, done, total: None)
    knobs = knobs or {}
    key, content = cache_key(source, name, target, options, show, knobs, rounding, layers)
    folder = cache.root() / "bundles"
    with cache.locked(key):
        if dump is None:
            hit = _cached(folder / key)
            if hit is not None:
                if fits is not None:
                    fits(hit.bundle.manifest["memory"], hit.bundle.manifest["model"]["context_length"])
                return hit
        job = _Job(source, name, target, options, fits, dump, show, knobs, rounding, layers)
        with bundles.building(folder / key) as partial:
            report = job.run(partial, content)
        (folder / f"{key}.json").write_text(json.dumps(report))
        return Compilation(bundles.read(folder / key), report, cached=False)


def _cached(directory: Path) -> Compilation | None:
    """The bundle if it is whole: same sizes, and its stamp still vouches for the weights."""
    found = bundles.intact(directory)
    if found is None:
        return None
    try:
        report = json.loads((directory.parent / f"{directory.name}.json").read_text())
    except (OSError, ValueError):
        return None  # damaged: compile it again, which replaces it
    return Compilation(found, report, cached=True)


@dataclass(frozen=True)
class _Job:
    """One compilation that the cache did not have."""

    source: Checkpoint
    name: str
    target: Target
    options: Options
    fits: Callable[[dict[str, int], int], None] | None
    dump: Path | None
    show: Progress
    knobs: Knobs
    rounding: Rounding = PLAIN
    layers: Layers | None = None
    processes: Processes = field(default_factory=Processes)

    def run(self, partial: Path, content: str) -> dict[str, Any]:
        """Fills `partial` with the whole bundle; returns the report."""
        started = time.monotonic()
        _check_space(partial, self.source)
        self._texts(partial)
        host = golden.host_target()
        alone = self.target.gpu is None and self.layers is None  # a processor runs all of it
        native = alone and host is not None and (host.arch, host.tier) == (self.target.arch, self.target.tier)
        twin = partial / ".golden" if host is not None and not native else None
        with ThreadPoolExecutor(2) as pool, contextlib.ExitStack() as stack:
            stack.callback(self.processes.stop)  # after an error, before the pool waits for what still runs
            runtime = pool.submit(_runtime, partial, self.target)
            other = pool.submit(self._twin, twin, partial, host) if twin is not None and host is not None else None
            result = self._worker(partial, self.target, self.fits, self.show, self.dump)
            self.show("building the runtime", 0, 0)
            runtime.result()
            manifest = self._manifest(result, content, self.target)
            self.show("golden prompts", 0, 0)
            at = time.monotonic()
            seconds = dict(result["seconds"])
            answers: list[golden.Answer] = []
            if native:
                bundles.seal(partial, manifest)
                answers = golden.answers(partial, self.source)
            elif other is not None and twin is not None and host is not None:
                bundles.seal(twin, self._manifest(other.result(), content, host))
                answers = golden.answers(twin, self.source)
                if not alone:
                    answers = golden.for_gpu(twin, answers, golden.largest_rows(partial / "plan.json"))
                shutil.rmtree(twin)
            seconds["golden prompts"] = time.monotonic() - at
        self.show("checksums", 0, 0)
        at = time.monotonic()
        bundles.seal(partial, {**manifest, "golden": answers}, lambda done, total: self.show("checksums", done, total))
        seconds["checksums"] = time.monotonic() - at
        seconds["total"] = time.monotonic() - started
        return {"statistics": result["statistics"], "seconds": {k: round(v, 3) for k, v in seconds.items()}}

    def _texts(self, directory: Path) -> None:
        """tokenizer.bin and chat.bin. First, because they are quick and their errors are frequent."""
        from crosscompile.tokenizer import compile_tokenizer

        source = self.source
        if source.tokenizer_json is None and source.path.is_file():
            raise ModelError(
                f"{source.path} has no tokenizer; put the original model's tokenizer.json beside it, as "
                f"{source.path.with_suffix('.tokenizer.json').name}"
            )
        if source.tokenizer_json is None:
            raise ModelError(
                f"{source.path} has no tokenizer.json; make one with transformers: AutoTokenizer.from_pretrained("
                f"{str(source.path)!r}).save_pretrained({str(source.path)!r}), or add RWKV's rwkv_vocab_v20230424.txt"
            )
        self.show("compiling the tokenizer", 0, 0)
        (directory / "tokenizer.bin").write_bytes(compile_tokenizer(source.tokenizer_json, source.tokenizer_config))
        if source.chat_template is not None:
            from crosscompile.template import compile_template

            (directory / "chat.bin").write_bytes(compile_template(source.chat_template, source.special_tokens))

    def _twin(self, directory: Path, original: Path, host: Target) -> dict[str, Any]:
        """The same bundle for this machine, without a manifest: it answers the golden prompts."""
        directory.mkdir()
        for name in ("tokenizer.bin", "chat.bin"):
            if (original / name).is_file():
                shutil.copyfile(original / name, directory / name)
        _runtime(directory, host)
        whole = replace(self, layers=None)
        return whole._worker(directory, host, None, lambda stage, done, total: None, None, short=True)

    def _worker(
        self,
        directory: Path,
        target: Target,
        fits: Callable[[dict[str, int], int], None] | None,
        show: Progress,
        dump: Path | None,
        short: bool = False,
    ) -> dict[str, Any]:
        request = {
            **request_of(self.source, target),
            "short": short,
            "output": str(directory.absolute()),
            "dump": str(dump.absolute()) if dump is not None else None,
            "knobs": {} if short else self.knobs,  # golden prompts cost the same either way
            **asdict(self.options),
            "layers": self.layers,
            "tensors": self.rounding.tensors,
            "calibrated": str(directory_) if (directory_ := self.rounding.directory) is not None else None,
        }
        return run_worker(request, fits, show, self.processes.add)

    def _manifest(self, result: dict[str, Any], content: str, target: Target) -> dict[str, Any]:
        """All of manifest.json but format, files and golden prompts."""
        from edgellm import __version__

        versions = cache.versions()
        return {
            "model": {**result["model"], "name": self.name},
            "scheme": result["scheme"],
            "target": {
                "device": target.device,
                "arch": target.arch,
                "os": target.os,
                "tier": target.tier.name,
                "cpu_features": list(target.tier.requires),
            },
            "memory": result["memory"],
            "generation": generation(self.source, result["model"]["vocab_size"]),
            "golden": [],
            "provenance": {
                "tool": f"edgellm {__version__}",
                "tvm": versions["apache-tvm"],
                "tvm_ffi": versions["apache-tvm-ffi"],
                "ziglang": versions["ziglang"],
                "checkpoint": content,
                "sources": cache.sources_digest(),
                **({"calibration": self.rounding.calibration} if self.rounding.calibration is not None else {}),
            },
        }


def _runtime(directory: Path, target: Target) -> None:
    """Puts edgellm-rt for `target` into the bundle."""
    program = build_runtime(target, cache=cache.root() / "runtime")
    shutil.copyfile(program, directory / "edgellm-rt")
    (directory / "edgellm-rt").chmod(0o755)


def _check_space(directory: Path, source: Checkpoint) -> None:
    """UnsuitableError if the disk cannot hold what will be written, taken as the checkpoint's own size."""
    needed = sum(tensor.n_bytes for tensor in source.tensors.values())
    free = shutil.disk_usage(directory).free
    if free < needed:
        raise UnsuitableError(
            f"{directory.parent} has {_mb(free)} free, compiling {source.path.name} takes up to {_mb(needed)}; "
            f"free some space or set EDGELLM_CACHE to another disk"
        )
