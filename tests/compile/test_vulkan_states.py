"""States that live on a GPU (Mesa's lavapipe): begun, advanced, copied and left as the processor does it.

And mixtures of experts in the kernels of other classes of GPUs than those of test_vulkan_families.py.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from crosscompile.runtime import build_runtime
from crosscompile.spirv.capabilities import Gpu
from crosscompile.target import target_of_tier
from edgellm import bundle as bundles
from edgellm import prefix
from tests.compile.logits import CPU, GPU, PREFIX, Model
from tests.compile.test_model import host_tiers
from tests.compile.test_vulkan import modules
from tests.compile.test_vulkan_families import add_half, prepare
from tests.emulated.test_bits import make_bundle
from tests.shaders import DESKTOP, LAYERS, lavapipe, lavapipe_alone, validate

PROCESSOR = replace(DESKTOP, schedule="processor")
CLASSES = {"desktop": DESKTOP, "processor": PROCESSOR, "floor": Gpu()}
"""The last can what every driver can: no sums over subgroups, no dot products."""


@dataclass(frozen=True)
class Made:
    """A bundle for both, and a text to run it with."""

    bundle: Path
    ids: list[int]

    def open(self, device: int) -> Model:
        return Model(self.bundle, vocab=131, device=device)


def make(name: str, scheme: str, gpu: Gpu, folder: Path) -> Made:
    tier = host_tiers()[-1]
    ids = prepare(folder, name)
    bundle = make_bundle(folder / "bundle", folder / "model", tier, scheme, short=True, stop_id=2)
    add_half(bundle, folder / "model", target_of_tier(tier).on_gpu(gpu), scheme)
    return Made(bundle, ids)


@pytest.fixture(scope="module")
def mamba(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Made]:
    with lavapipe_alone():
        yield make("mamba-tied", "f32", PROCESSOR, tmp_path_factory.mktemp("mamba"))


def off(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def compare(made: Made, tolerance: float) -> None:
    """Pieces of a text, one that begins anew in the same session, and two sessions whose rows take turns."""
    a, b = made.open(CPU), made.open(GPU)
    tokens = np.array(made.ids)
    for lengths in ([1] * 11, [30, 1, 9], [3, 8, 8]):
        some = tokens[: sum(lengths)]
        assert off(b.logits(some, lengths), a.logits(some, lengths)) < tolerance
    assert off(b.mixed(tokens[:26]), a.mixed(tokens[:26])) < tolerance
    a.close()
    b.close()


def test_a_state_is_the_sessions_and_begins_with_zeros(mamba: Made) -> None:
    compare(mamba, 1e-4)


def test_a_state_is_copied_on_the_device_and_goes_its_own_way(mamba: Made) -> None:
    tokens = np.array(mamba.ids)
    model = mamba.open(GPU)
    expected = model.logits(tokens[:20], [12, 8])
    model.logits(tokens[:12], [12])
    assert model.share(0, 1, 12) == 0
    assert model.share(0, 1, 7) != 0  # a state cannot be cut
    model.rows(tokens[30:38], 12, 0)  # the first one's goes elsewhere
    assert off(model.rows(tokens[12:20], 12, 1), expected[12:]) < 1e-6
    model.close()


def test_what_a_gpu_keeps_is_saved_and_goes_on_in_another_session(mamba: Made, tmp_path: Path) -> None:
    saved_goes_on(mamba, 9, tmp_path / "session")


def test_what_the_processor_computed_is_shipped_to_the_gpu(mamba: Made, tmp_path: Path) -> None:
    shipped_goes_on(mamba, 9, tmp_path)


@pytest.mark.oracle
@pytest.mark.parametrize(
    ("name", "scheme", "gpu", "n"),
    [
        ("mistral-window", "f32", "processor", 73),
        ("mistral-tied", "f32 i8", "desktop", 73),
        ("mamba2-groups", "f32", "desktop", 9),
        ("rwkv7-plain", "f32", "desktop", 9),
    ],
)
def test_whatever_a_gpu_keeps_is_saved_and_shipped(name: str, scheme: str, gpu: str, n: int, tmp_path: Path) -> None:
    """Blocks that a window still shows, blocks of int8 with their scales, and states of other networks."""
    with lavapipe_alone():
        made = make(name, scheme, CLASSES[gpu], tmp_path)
        saved_goes_on(made, n, tmp_path / "session")
        shipped_goes_on(made, n, tmp_path, 1e-4 if scheme == "f32" else 2e-2)


def saved_goes_on(made: Made, n: int, file: Path) -> None:
    """n tokens by one GPU, what follows by another: the same bits as by one. The processor does not take them up."""
    tokens, tail = np.array(made.ids[: n + 2]), [1, 1]
    one, other, cpu = made.open(GPU), made.open(GPU), made.open(CPU)
    expected = one.logits(tokens, [n, *tail])[n:]
    one.logits(tokens[:n], [n])
    assert one.save(0, made.ids[:n], file) == (0, "")
    other.rows(tokens[::-1], 0, 0)  # it has blocks of its own already
    assert other.restore(1, file) == n
    assert np.array_equal(np.concatenate([other.rows(tokens[n + i : n + i + 1], n + i, 1) for i in range(2)]), expected)
    assert cpu.restore(0, file) == 0
    for model in (one, other, cpu):
        model.close()


def shipped_goes_on(made: Made, n: int, folder: Path, tolerance: float = 1e-4) -> None:
    """n tokens by the processor, shipped with the bundle: what follows is the GPU's within the tolerance."""
    cpu, copy, file = made.open(CPU), folder / "shipped", folder / "by-cpu"
    expected = cpu.logits(np.array(made.ids[: n + 8]), [n, 8])
    cpu.logits(np.array(made.ids[:n]), [n])
    assert cpu.save(0, made.ids[:n], file) == (0, "")
    cpu.close()
    shutil.copytree(made.bundle, copy)
    shutil.copyfile(file, copy / prefix.FILE)
    manifest = {key: value for key, value in bundles.read(copy).manifest.items() if key not in ("format", "files")}
    bundles.seal(copy, {**manifest, "prefix": {"file": prefix.FILE, "tokens": n, "tools": False}})
    gpu = replace(made, bundle=copy).open(GPU)
    for slot in range(2):
        assert gpu.share(PREFIX, slot, n) == 0
        assert off(gpu.rows(np.array(made.ids[n : n + 8]), n, slot), expected[n:]) < tolerance
    gpu.close()


def watched(made: Made, **environment: str) -> subprocess.CompletedProcess[str]:
    program = build_runtime(target_of_tier(host_tiers()[-1]).on_gpu(DESKTOP))
    argv = [str(program), "run", str(made.bundle), "--tokens", ",".join(map(str, made.ids[:11])), "--step", "8"]
    argv += ["--logits", str(made.bundle.parent / "logits.f32"), "--device", "vulkan"]
    env = {**lavapipe(), **environment}
    return subprocess.run(argv, capture_output=True, text=True, env=env, timeout=600, check=False)


def test_the_validation_layers_have_nothing_to_say_of_a_state(mamba: Made) -> None:
    quiet(mamba)


def quiet(made: Made) -> None:
    done = watched(made, **LAYERS)
    assert done.returncode == 0, done.stderr
    assert "Validation" not in done.stdout + done.stderr
    assert "VUID" not in done.stdout + done.stderr


@pytest.mark.oracle
@pytest.mark.parametrize("gpu", CLASSES)
@pytest.mark.parametrize(
    ("name", "scheme", "tolerance"),
    [
        ("mamba2-groups", "w8a8", 5e-2),
        ("falcon-mamba-untied", "f16", 5e-3),
        ("rwkv7-plain", "f32", 1e-4),
        ("qwen2-moe-some", "w4a8", 5e-2),
        ("mixtral-tied", "f16", 5e-3),
        ("olmoe-normalized", "w8a8", 5e-2),
    ],
)
def test_every_class_of_gpus(name: str, scheme: str, tolerance: float, gpu: str, tmp_path: Path) -> None:
    """Logits within the tolerance, modules that are valid, and layers that find nothing."""
    with lavapipe_alone():
        made = make(name, scheme, CLASSES[gpu], tmp_path)
        compare(made, tolerance)
        quiet(made)
    for kernel, module in modules(made.bundle).items():
        validate(module, kernel, tmp_path)
