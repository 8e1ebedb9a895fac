"""Plans compared step by step: every scheme agrees with NumPy to the bit, and faults put into a bundle are found.

Bundles are compiled for this machine; faults are real ones: changed weights, a kernel that scales wrongly, a plan that
overwrites what is still needed. Each reproducer must fail alone, and stop failing once the fault is taken out of it.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from crosscompile import checkpoint, compile_model
from crosscompile.kernels import linear
from crosscompile.models.architecture import scheme_for
from crosscompile.passes import lower_operators
from crosscompile.program import SHORT_LADDER
from crosscompile.reference_steps import reference_values
from crosscompile.runtime import build_runtime
from edgellm import bundle as bundles
from edgellm import reproducer, stepwise
from edgellm.cli import main
from edgellm.errors import CommandError, UsageError
from edgellm.golden import host_target
from edgellm.local_remote import LocalRemote
from edgellm.machine import Machine, open_machine
from tests.emulated.test_bits import make_bundle
from tests.oracle.configurations import CONFIGURATIONS, tokens, write_checkpoint

pytestmark = pytest.mark.skipif(host_target() is None, reason="this machine's CPU has none of the tiers")

N_TOKENS, N_ROWS = 10, 8
FAULTY = "model.layers.1.mlp.down_proj.weight"
CONFIG = CONFIGURATIONS["llama-linear"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("compare") / "model", CONFIG)


@pytest.fixture(scope="module")
def sound(model: Path) -> Path:
    return bundle_of(model.parent / "sound", model, "w4a8")


def bundle_of(directory: Path, model: Path, scheme: str) -> Path:
    """A bundle for this machine, with its program, without golden prompts."""
    target = host_target()
    assert target is not None
    make_bundle(directory, model, target.tier.name, scheme if " " in scheme else f"{scheme} ")
    shutil.copyfile(build_runtime(target), directory / "edgellm-rt")
    (directory / "edgellm-rt").chmod(0o755)
    return reseal(directory)


def reseal(directory: Path) -> Path:
    """New checksums for what was changed."""
    manifest = json.loads((directory / "manifest.json").read_text())
    bundles.seal(directory, {key: value for key, value in manifest.items() if key not in ("format", "files")})
    return directory


def copy_of(sound: Path, directory: Path) -> Path:
    shutil.copytree(sound, directory)
    return directory


def machine_of(bundle: Path) -> Machine:
    return open_machine(LocalRemote("here"), "model", str(bundle), ("--threads", "2"))[0]


def compared(bundle: Path, model: Path, n_tokens: int = N_TOKENS) -> tuple[int, stepwise.Finding | None]:
    machine, source = machine_of(bundle), checkpoint.load(model)
    ids = tokens(source.config, n_tokens)
    reference = stepwise.NotedReference("NumPy", reference_values(source, ids, machine.scheme), machine.plan)
    return stepwise.compare(machine, reference, source, ids, N_ROWS)


def found(bundle: Path, model: Path) -> stepwise.Finding:
    _, finding = compared(bundle, model)
    assert finding is not None
    return finding


@pytest.mark.parametrize(
    ("name", "scheme", "n_tokens"),
    [
        ("llama-linear", "f32", N_TOKENS),
        ("llama-biases", "f16", N_TOKENS),
        ("llama-tied-1009", "w8a8", N_TOKENS),
        ("llama-wide-heads", "w4a8 i8", 70),
        ("mistral-window", "w4a8", 140),
    ],
)
def test_every_step_agrees_with_numpy_to_the_bit(name: str, scheme: str, n_tokens: int, tmp_path: Path) -> None:
    model = write_checkpoint(tmp_path / "model", CONFIGURATIONS[name])
    n_good, finding = compared(bundle_of(tmp_path / "bundle", model, scheme), model, n_tokens)
    assert finding is None, f"{finding.launch.name}: {finding.difference}"
    assert n_good >= -(-n_tokens // N_ROWS) * 20


def change_weights(bundle: Path, tensor: str, dtype: str, factor: float) -> None:
    """Multiplies one tensor of a bundle, in its shard."""
    for shard in (bundle / "weights").glob("*.safetensors"):
        data = bytearray(shard.read_bytes())
        start = 8 + int.from_bytes(data[:8], "little")
        entry = json.loads(data[8:start]).get(tensor)
        if entry is not None:
            first, end = (start + offset for offset in entry["data_offsets"])
            values = np.frombuffer(data[first:end], dtype)
            data[first:end] = (values * values.dtype.type(factor)).astype(dtype).tobytes()
            shard.write_bytes(data)
    reseal(bundle)


def change_scales(bundle: Path, tensor: str) -> None:
    """Makes the scales of one tensor a sixteenth larger."""
    change_weights(bundle, f"{tensor}.scale", "<f2", 1.0625)


def test_wrong_scales_of_one_layer_are_found(sound: Path, model: Path, tmp_path: Path) -> None:
    bundle = copy_of(sound, tmp_path / "bundle")
    change_scales(bundle, FAULTY)
    finding = found(bundle, model)
    assert (finding.launch.step.tensor, finding.launch.function.role) == (FAULTY, "body")
    assert finding.cause == "weights"
    assert f"{FAULTY}.scale is not what the checkpoint gives" in finding.detail
    where = tmp_path / "reproducer"
    reproducer.write(finding, where)
    wrong = reproducer.replay(LocalRemote("here"), where)
    assert wrong is not None
    assert "elements differ" in wrong

    # it is the scales: with the right ones the same reproducer passes
    whole = stepwise.show_launch(machine_of(sound).model, finding.launch, tokens(CONFIG, N_TOKENS), N_ROWS, ())
    place = finding.whole.names.index(f"{FAULTY}.scale")
    (file,) = where.glob(f"{place}-*.scale.npy")
    assert np.load(file).dtype == np.float16
    np.save(file, np.frombuffer(whole.before[place], np.float16))
    assert reproducer.replay(LocalRemote("here"), where) is None


def wrongly_scaled_kernels(bundle: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiles the bundle's code anew with one layer's kernel patched: it multiplies its scales by 1 + 2⁻¹⁰."""
    right, fma = lower_operators.Rewriter.matmul, linear.fma

    def wrong_fma(a, b, c):
        return fma(a, b * linear.constant(1.0009765625, 1), c)

    def matmul(self, var, call):
        weight = self.origin[call.args[1]].args[0]
        if self.stored[self.names[weight]].tensor != FAULTY:
            return right(self, var, call)
        with monkeypatch.context() as patch:
            patch.setattr(linear, "fma", wrong_fma)
            patch.setattr(lower_operators, "quantized_linear", linear.quantized_linear.__wrapped__)
            return right(self, var, call)

    target = host_target()
    assert target is not None
    with monkeypatch.context() as patch:
        patch.setattr(lower_operators.Rewriter, "matmul", matmul)
        made = compile_model(checkpoint.load(model).config, target, scheme_for("w4a8"), ladder=SHORT_LADDER)
    (bundle / "kernels.so").write_bytes(made.kernels)
    (bundle / "plan.json").write_text(json.dumps(made.plan))
    reseal(bundle)


def test_a_kernel_that_scales_wrongly_in_one_layer_is_found(
    sound: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = copy_of(sound, tmp_path / "bundle")
    wrongly_scaled_kernels(bundle, model, monkeypatch)
    finding = found(bundle, model)
    assert (finding.launch.step.tensor, finding.cause) == (FAULTY, "kernel")
    where = tmp_path / "reproducer"
    reproducer.write(finding, where)
    for threads in ("1", "2"):
        wrong = reproducer.replay(LocalRemote("here"), where, ("--threads", threads))
        assert wrong is not None
        assert "elements differ" in wrong
    by_hand = subprocess.run([where / "edgellm-rt", "replay", where], capture_output=True, text=True, check=False)
    assert by_hand.returncode == 27
    assert by_hand.stderr.startswith("edgellm-rt: KERNEL_FAILED: ")

    # it is the kernel: the right one in its place passes
    shutil.copyfile(sound / "kernels.so", where / "kernels.so")
    document = json.loads((where / "replay.json").read_text())
    right = machine_of(sound).plan.functions["body", 8].steps[finding.launch.index].kernel
    (where / "replay.json").write_text(json.dumps({**document, "symbol": right}))
    assert reproducer.replay(LocalRemote("here"), where) is None


def test_a_plan_that_overwrites_what_is_still_needed_is_found(sound: Path, model: Path, tmp_path: Path) -> None:
    """The rotary table of all layers lies where the first layer's quantization writes its scales."""
    bundle = copy_of(sound, tmp_path / "bundle")
    plan = json.loads((bundle / "plan.json").read_text())
    for function in plan["functions"]:
        if function["name"] == "body":
            names = [plan["kernels"][step["kernel"]]["name"] for step in function["steps"]]
            place = next(i for i, name in enumerate(names) if "act_quant" in name)
            table = next(
                step["args"][-1] for step, name in zip(function["steps"], names, strict=True) if "table" in name
            )
            function["steps"][place]["args"][2] = table
            function["steps"][place + 1]["args"][1] = table
    (bundle / "plan.json").write_text(json.dumps(plan))
    finding = found(reseal(bundle), model)
    assert (finding.launch.step.operation, finding.cause) == ("rope_append", "inputs")
    assert "rope_table" in finding.detail
    assert "was changed before it was read" in finding.detail


def test_the_hosts_own_run_as_reference(sound: Path, model: Path, tmp_path: Path) -> None:
    source, ids = checkpoint.load(model), tokens(CONFIG, N_TOKENS)
    reference = stepwise.HostReference.run(machine_of(sound), ids, N_ROWS)
    assert stepwise.compare(machine_of(sound), reference, source, ids, N_ROWS)[1] is None
    bundle = copy_of(sound, tmp_path / "bundle")
    change_scales(bundle, FAULTY)
    _, finding = stepwise.compare(machine_of(bundle), reference, source, ids, N_ROWS)
    assert finding is not None
    assert finding.launch.step.tensor == FAULTY


@pytest.mark.oracle
def test_every_step_agrees_with_transformers_within_a_tolerance(model: Path, tmp_path: Path) -> None:
    from edgellm.transformers_reference import transformers_values

    bundle = bundle_of(tmp_path / "bundle", model, "f32")
    source, ids = checkpoint.load(model), tokens(CONFIG, N_TOKENS)

    def run() -> stepwise.Finding | None:
        machine = machine_of(bundle)
        notes = transformers_values(model, ids, machine.scheme)
        reference = stepwise.NotedReference("transformers", notes, machine.plan)
        return stepwise.compare(machine, reference, source, ids, N_ROWS, 1e-4)[1]

    assert run() is None
    change_weights(bundle, FAULTY, "<f4", 1.001)
    finding = run()
    assert finding is not None
    assert (finding.launch.step.tensor, finding.cause) == (FAULTY, "weights")
    reproducer.write(finding, tmp_path / "reproducer")
    wrong = reproducer.replay(LocalRemote("here"), tmp_path / "reproducer")
    assert wrong is not None
    assert "elements differ" in wrong


def test_compare_as_a_command(sound: Path, model: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    """A broken bundle lies on a board, which here is another home directory of this machine."""
    for name in ("HOME", "XDG_STATE_HOME", "XDG_CONFIG_HOME", "EDGELLM_CACHE"):
        monkeypatch.setenv(name, str(tmp_path / name))
    bundle = copy_of(sound, tmp_path / "bundle")
    change_scales(bundle, FAULTY)
    (tmp_path / "HOME").mkdir()
    assert main(["deploy", str(bundle), "--board", "local", "--name", "broken", "--json"]) == 0
    capsys.readouterr()
    where = tmp_path / "out"
    command = ["compare", str(model), "--board", "local", "--name", "broken", "-o", str(where)]
    assert main([*command, "--json"]) == 1
    document = json.loads(capsys.readouterr().out)
    here, board = document["machines"]
    assert (here["step"], here["steps"]) == ("", 50)
    assert FAULTY in board["step"]
    assert board["cause"] == "weights"
    assert "elements differ" in board["alone"]
    assert main(command) == 1  # the same directory again
    text = capsys.readouterr().out
    assert FAULTY in text
    assert str(where) in text
    assert main(["compare", "--replay", str(where)]) == 1
    assert "elements differ" in capsys.readouterr().out
    assert main(["compare", str(model), "--board", "local", "--name", "absent"]) == 1
    assert "edgellm deploy" in capsys.readouterr().err


def test_requests_that_make_no_sense(model: Path, tmp_path: Path, capsys) -> None:
    for argv, said in (
        ([], "which model?"),
        ([str(model), "--rows", "65"], "--rows 65"),
        ([str(model), "--tolerance", "7"], "--tolerance"),
        ([str(model), "--host", "pi@x"], "exactly one --board"),
        (["--replay", str(tmp_path)], "is no reproducer"),
    ):
        assert main(["compare", *argv]) == 1
        error = capsys.readouterr().err
        assert said in error
        assert error.count("\n") == 1


def test_nothing_else_is_overwritten(sound: Path, model: Path, tmp_path: Path) -> None:
    bundle = copy_of(sound, tmp_path / "bundle")
    change_scales(bundle, FAULTY)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_bytes(b"miaow")
    with pytest.raises(UsageError, match="is no reproducer; choose another"):
        reproducer.write(found(bundle, model), tmp_path / "photos")
    assert (tmp_path / "photos" / "cat.jpg").read_bytes() == b"miaow"


class Liar(LocalRemote):
    """A machine whose edgellm-rt says something else."""

    def __init__(self, change) -> None:
        super().__init__("liar")
        self.change = change

    def run(self, argv, **options):
        result = super().run(argv, **options)
        return type(result)(result.status, self.change(result.stdout), result.stderr) if "trace" in argv else result


@pytest.mark.parametrize(
    "change",
    [
        lambda text: b"",
        lambda text: text[:-1],
        lambda text: text + b"{}\n",
        lambda text: b"\x1b[2J" + text,
        lambda text: text.replace(b'"number":3', b'"number":4'),
        lambda text: text.replace(b'"rows":8', b'"rows":7'),
        lambda text: text.replace(b'"bytes":', b'"bytes":-'),
        lambda text: text.replace(b'"sha256":"', b'"sha256":"00'),
        lambda text: text.replace(b'"outputs":[', b'"outputs":[{},'),
    ],
)
def test_a_machine_that_talks_nonsense_is_not_believed(sound: Path, model: Path, change) -> None:
    machine = open_machine(Liar(change), "model", str(sound))[0]
    source, ids = checkpoint.load(model), tokens(CONFIG, N_TOKENS)
    reference = stepwise.NotedReference("NumPy", reference_values(source, ids, machine.scheme), machine.plan)
    with pytest.raises(CommandError, match="liar: edgellm-rt trace said something unexpected") as error:
        stepwise.compare(machine, reference, source, ids, N_ROWS)
    assert "\x1b" not in str(error.value)
