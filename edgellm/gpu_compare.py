"""Finding the kernel that a GPU's driver compiles wrongly: a trace, followed step by step by another device.

The other device is Mesa's lavapipe on this machine, a processor that imitates a GPU. It runs the very same bundle and
computes each step from what the GPU wrote before, not from its own numbers: a deviation would grow, and every later
kernel would look wrong. So every kernel is judged alone, and all that are wrong are found, not only the first.
"""

from __future__ import annotations

import glob
import hashlib
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgellm import bundle as bundles
from edgellm import cache
from edgellm.errors import BundleError, ModelError, UsageError
from edgellm.gpu_values import Module, deviation, read_modules
from edgellm.launches import Launch, Output, Whole, read_trace, run_trace, show_launch, trace_head
from edgellm.local_remote import LocalRemote
from edgellm.profile_result import fetch
from edgellm.remote import Remote
from edgellm.runtime_program import InstalledModel
from edgellm.steps import Plan, read_plan
from edgellm.stepwise import Difference

DEVICE = ("--device", "vulkan")
_FOLDERS = ("/usr/share/vulkan/icd.d", "/usr/local/share/vulkan/icd.d", "/etc/vulkan/icd.d")


@dataclass(frozen=True)
class GpuBundle:
    """A bundle for a GPU where it runs.

    modules, grids: kernels, and how many workgroups of them are dispatched, by name; digest: of its manifest
    """

    model: InstalledModel
    plan: Plan
    modules: Mapping[str, Module]
    digest: str
    grids: Mapping[str, list[int]]
    vocab: int

    @property
    def name(self) -> str:
        return self.model.remote.name


@dataclass(frozen=True)
class Wrong:
    """A step that wrote something else than the reference does, from the same numbers."""

    launch: Launch
    difference: Difference


@dataclass(frozen=True)
class Verdict:
    """What came of following a GPU. gpu, reference: the devices' names; wrong: in their order."""

    gpu: str
    reference: str
    n_steps: int
    wrong: tuple[Wrong, ...]

    @property
    def kernels(self) -> list[str]:
        """Names of the kernels that are wrong anywhere."""
        return list(dict.fromkeys(each.launch.step.kernel for each in self.wrong))


@dataclass(frozen=True)
class Evidence:
    """The first wrong step, run again on both devices.

    cause    "kernel": from the same numbers it computes something else; "weights": the GPU's memory holds others than
             the bundle; "inputs": an earlier step wrote into what it reads; "unsteady": the second time it was right
    """

    cause: str
    detail: str
    found: Whole
    expected: Whole


def open_gpu_bundle(remote: Remote, name: str, path: str, program: str | None = None) -> GpuBundle:
    """A bundle's part for GPUs. Raises UsageError if it has none or only some layers, BundleError, RemoteError."""
    where = f"{remote.name}: {name}"
    manifest = fetch(remote, f"{path}/manifest.json")
    try:
        said = json.loads(manifest)
        device, vocab = said["target"].get("device", "cpu"), int(said["model"]["vocab_size"])
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise BundleError(f"{where}: manifest.json says nothing of the target; deploy the model again") from error
    if device not in ("vulkan", "both"):
        why = "has only some layers on the GPU" if device == "split" else "is for the processor alone"
        raise UsageError(f"{where} {why}; deploy it with --device vulkan, or both, to compare what its GPU computes")
    plan_name = "plan-vulkan.json" if device == "both" else "plan.json"
    text = fetch(remote, f"{path}/{plan_name}")
    plan = read_plan(text, f"{where}: {plan_name}")
    grids = {kernel["name"]: kernel.get("grid", []) for kernel in json.loads(text)["kernels"]}
    modules = read_modules(fetch(remote, f"{path}/kernels.spv", 1 << 30), where)
    model = InstalledModel(remote, name, path, program)
    if missing := {step.kernel for each in plan.functions.values() for step in each.steps} - modules.keys():
        raise BundleError(f"{where}: kernels.spv lacks {min(missing)}; compile the model again")
    return GpuBundle(model, plan, modules, hashlib.sha256(manifest).hexdigest(), grids, vocab)


def same_bundle(digest: str, given: Path | None, board: str) -> Path:
    """A directory on this machine with the very bundle of a board. given: --bundle. Raises UsageError."""
    if given is not None:
        if bundles.read(given).sha256 != digest:
            raise UsageError(f"{given} is another bundle than the one on {board}; name the one that was deployed")
        return given
    for file in (cache.root() / "bundles").glob(f"*/{bundles.DIGEST}"):
        if file.read_text(encoding="ascii", errors="replace").split() == [digest, bundles.MANIFEST]:
            return file.parent
    raise UsageError(
        f"the bundle on {board} is not among those compiled here; name its directory with --bundle DIR, or deploy the "
        f"model again from this machine"
    )


def lavapipe() -> dict[str, str]:
    """The environment in which Vulkan finds lavapipe alone. UsageError if it is not on this machine."""
    found = sorted(file for folder in _FOLDERS for file in glob.glob(f"{folder}/lvp_icd*.json"))
    if not found:
        raise UsageError(
            "a GPU is compared with lavapipe, which this machine does not have; install it (Debian and Ubuntu: "
            "mesa-vulkan-drivers, libvulkan1; Fedora: mesa-vulkan-drivers, vulkan-loader)"
        )
    return {"VK_DRIVER_FILES": found[0], "VK_ICD_FILENAMES": found[0]}


def open_reference(bundle: Path) -> GpuBundle:
    """A bundle, wherever it was compiled for, on this machine's lavapipe."""
    from crosscompile.runtime import build_runtime
    from crosscompile.spirv.capabilities import Gpu
    from edgellm.golden import host_target

    target = host_target()
    if target is None:
        raise ModelError("a GPU is compared with lavapipe on this machine, and this machine runs no bundles")
    program = build_runtime(target.on_gpu(Gpu()))
    return open_gpu_bundle(LocalRemote("lavapipe here", lavapipe()), bundle.name, str(bundle), str(program))


class Trial:
    """A prompt on a GPU, and on the reference from the GPU's numbers. options: for edgellm-rt trace."""

    def __init__(
        self, gpu: GpuBundle, reference: GpuBundle, tokens: Sequence[int], n_rows: int, options: Sequence[str] = ()
    ) -> None:
        self.gpu, self.reference = gpu, reference
        self._tokens, self._n_rows, self._options = tokens, n_rows, (*DEVICE, *options)

    def run(self, folder: Path) -> Verdict:
        """Runs both. folder: where the GPU's trace is kept for `evidence`. Raises RemoteError, RuntimeFailedError."""
        theirs = run_trace(self.gpu.model, self.reference.plan, self._tokens, self._n_rows, self._options, data=True)
        self._file(folder).write_bytes(theirs)
        ours = run_trace(
            self.reference.model, self.reference.plan, self._tokens, self._n_rows, self._following(folder), data=True
        )
        names = [
            str(trace_head(text, each.name).get("gpu") or each.name)
            for text, each in ((theirs, self.gpu), (ours, self.reference))
        ]
        n_steps, wrong = 0, []
        pairs = zip(self._read(theirs, self.gpu), self._read(ours, self.reference), strict=True)
        for (launch, found), (_, expected) in pairs:
            n_steps += 1
            if (difference := self._differ(launch, found, expected)) is not None:
                wrong.append(Wrong(launch, difference))
        return Verdict(names[0], names[1], n_steps, tuple(wrong))

    def evidence(self, wrong: Wrong, folder: Path) -> Evidence:
        """Runs both up to a wrong step again, with all that it reads."""
        launch, arguments = wrong.launch, wrong.launch.step.arguments
        found = show_launch(self.gpu.model, launch, self._tokens, self._n_rows, self._options)
        expected = show_launch(self.reference.model, launch, self._tokens, self._n_rows, self._following(folder))
        cause, detail = "kernel", "what it reads is as it should be"
        for place, data in found.before.items():
            if data == expected.before[place] or (arguments[place].bind == "s" and "w" in arguments[place].access):
                continue
            what = found.names[place] or f"argument {place}"
            if arguments[place].bind == "w":
                cause, detail = "weights", f"{what} is not in the GPU's memory as it is in the bundle"
                break
            cause, detail = "inputs", f"{what}, which was written rightly, was changed before it was read"
        same = all(
            self._one(launch, place, data, expected.after[place], False) is None for place, data in found.after.items()
        )
        if same and cause == "kernel":
            cause, detail = "unsteady", "the second time it was right: heat, voltage, memory, or a race"
        return Evidence(cause, detail, found, expected)

    def _differ(self, launch: Launch, found: Sequence[Output], expected: Sequence[Output]) -> Difference | None:
        kinds = [self._kind(launch, output.argument, output.data) for output in found]
        for kind, a, b in zip(kinds, found, expected, strict=True):
            if len(a.data) != len(b.data):
                raise BundleError(f"{self.gpu.name}: {launch.name} wrote {len(a.data)} bytes, here {len(b.data)}")
            ties = kind == "<i4" and "<f4" in kinds
            if (difference := self._one(launch, a.argument, a.data, b.data, ties)) is not None:
                return difference
        return None

    def _one(self, launch: Launch, place: int, found: bytes, expected: bytes, ties: bool) -> Difference | None:
        kernel, rows = launch.step.kernel, launch.function.n
        kind, scaled = self._kind(launch, place, found), launch.step.arguments[place].bind == "s"
        tolerance = self.reference.modules[kernel].tolerance(kernel)
        return deviation(kind, rows, found, expected, place, tolerance=tolerance, ties=ties, scaled=scaled)

    def _kind(self, launch: Launch, argument: int, data: bytes) -> str:
        return self.reference.modules[launch.step.kernel].kind(argument, len(data), written=True)

    def _read(self, text: bytes, where: GpuBundle) -> Iterator[tuple[Launch, list[Output]]]:
        return read_trace(text, where.name, self.reference.plan, len(self._tokens), self._n_rows, data=True)

    def _following(self, folder: Path) -> tuple[str, ...]:
        return (*DEVICE, "--follow", str(self._file(folder)))

    @staticmethod
    def _file(folder: Path) -> Path:
        return folder / "trace"


def judged(trial: Trial, wants_evidence: bool = True) -> tuple[Verdict, Evidence | None]:
    """The verdict on a GPU, and of the first wrong step the evidence."""
    with tempfile.TemporaryDirectory(prefix="edgellm-compare-") as name:
        verdict = trial.run(Path(name))
        looks = verdict.wrong and wants_evidence
        return verdict, trial.evidence(verdict.wrong[0], Path(name)) if looks else None
