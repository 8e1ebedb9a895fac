"""Conversations that a GPU (Mesa's lavapipe) computes, all of it or its layers: saved, taken up again, and begun with
what the bundle ships, as the processor's are."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from crosscompile.kernels.kv_cache import KV_BLOCK
from edgellm import bundle as bundles
from edgellm.compile import build
from edgellm.precision import Options
from edgellm.prefix import Prefix
from tests.compile.test_device_both import call
from tests.compile.test_sessions import asked, talk, told
from tests.compile.test_vulkan_faults import LOST, NO_MEMORY, faulty_loader
from tests.server import MODEL, QUESTIONS, SYSTEM, Server
from tests.shaders import LAYERS, lavapipe

BOTH, SPLIT = "both", "split"
GPU, CPU, FEW = ("--device", "vulkan"), ("--device", "cpu"), ("-n", "6")
ANEW = "or device, wrote this session: it is computed anew"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Bundles that ship the system prompt of these conversations."""
    folder, wanted = tmp_path_factory.mktemp("sessions"), Prefix(SYSTEM)
    both = build(MODEL, "local", Options("w4a8"), folder / BOTH, device="both", prefix=wanted)
    split = build(MODEL, "local", Options("f32"), folder / SPLIT, gpu_layers=2, prefix=wanted)
    return {BOTH: both.bundle.path, SPLIT: split.bundle.path}


@pytest.fixture(scope="module")
def loader(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return faulty_loader(tmp_path_factory.mktemp("loader"))


def with_fault(loader: Path, fault: str = "", **more: str) -> dict[str, str]:
    """The environment in which lavapipe looks like a real GPU, and fails as told."""
    return {**lavapipe(), "LD_LIBRARY_PATH": str(loader), "FAULT": fault, **more}


@pytest.mark.parametrize(("which", "fault"), [(BOTH, ""), (SPLIT, "apart:1:0")])
def test_a_conversation_goes_on_without_being_computed_again(
    which: str, fault: str, made: dict[str, Path], loader: Path, tmp_path: Path
):
    """Also where the processor does not see the GPU's memory. What validation layers print would be no JSON."""
    session, env = tmp_path / "work", with_fault(loader, fault, **LAYERS)
    options = (*GPU, *FEW)
    questions = [asked(question) for question in QUESTIONS[:3]]
    whole = talk(made[which], None, *questions, options=options, env=lavapipe())
    first = talk(made[which], session, *questions[:2], options=options, env=env)
    second = talk(made[which], session, *questions[2:], options=options, env=env)
    assert told(first) + told(second) == told(whole)
    assert second[-1]["reused_tokens"] == whole[-1]["reused_tokens"] > first[-1]["prompt_tokens"] > KV_BLOCK
    begun = next(message for message in first if message["type"] == "done")
    assert begun["reused_tokens"] == bundles.read(made[which]).manifest["prefix"]["tokens"] > 30


def test_its_gpu_proves_itself_behind_what_is_shipped(made: dict[str, Path]):
    """In f32: states that are not where they belong would be off by more than that."""
    done = call(made[SPLIT], "golden", "--device", "vulkan", "--json")
    assert done.returncode == 0, done.stderr
    proven = json.loads(done.stdout)
    assert proven["prompts"] == len(bundles.read(made[SPLIT]).manifest["golden"]) == 5
    assert proven["farthest"] < 1e-4


def test_each_device_computes_anew_what_the_other_one_wrote(made: dict[str, Path], loader: Path, tmp_path: Path):
    """The GPU computes a session, unasked, where it computes everything else."""
    session, shipped = tmp_path / "work", bundles.read(made[BOTH]).manifest["prefix"]["tokens"]

    def goes_on(*options: str) -> bool:
        said = talk(made[BOTH], session, asked(QUESTIONS[1]), options=(*options, *FEW), env=with_fault(loader))
        anew = any(ANEW in message.get("text", "") for message in said)
        assert said[-1]["reused_tokens"] == shipped if anew else said[-1]["reused_tokens"] > shipped
        assert told(said)
        return not anew

    talk(made[BOTH], session, asked(QUESTIONS[0]), options=FEW, env=with_fault(loader))
    assert goes_on(*GPU)
    assert not goes_on(*CPU)
    assert not goes_on()


def test_one_that_lacks_a_state_of_the_second_device_is_refused_and_left_alone(made: dict[str, Path], tmp_path: Path):
    """Though it says that it is whole."""
    session = tmp_path / "work"
    talk(made[SPLIT], session, asked(QUESTIONS[0]), options=FEW, env=lavapipe())
    data = session.read_bytes()
    head = 8 + int.from_bytes(data[:8], "little")
    lacking = data[:head].replace(b'"kv.11"', b'"kv.99"')
    whole = hashlib.sha256(lacking + data[head + 64 :]).hexdigest().encode()
    assert lacking != data[:head]
    content = lacking + whole + data[head + 64 :]
    session.write_bytes(content)
    assert talk(made[SPLIT], session, expect=70, env=lavapipe()) == []
    assert session.read_bytes() == content


def test_a_server_s_sessions_outlive_it(made: dict[str, Path], loader: Path, tmp_path: Path):
    def answers() -> list[tuple[str, int]]:
        server = Server(made[BOTH], "--keep", str(tmp_path / "kept"), "--sessions", "2", env=with_fault(loader))
        found = []
        for question in QUESTIONS[:2]:
            messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": question}]
            body = {"messages": messages, "temperature": 0, "max_tokens": 6}
            answer = server.post("/v1/chat/completions", body)[1]
            cached = answer["usage"]["prompt_tokens_details"]["cached_tokens"]
            found.append((answer["choices"][0]["message"]["content"], cached))
        assert server.stop() == 0
        return found

    before, after = answers(), answers()
    assert [text for text, _ in before] == [text for text, _ in after]
    assert after[0][1] > before[0][1]


def test_a_gpu_that_fails_meanwhile_is_named(made: dict[str, Path], loader: Path, tmp_path: Path):
    session, counted = tmp_path / "work", tmp_path / "counts"
    env = with_fault(loader, FAULT_COUNTS=str(counted))
    talk(made[BOTH], session, asked(QUESTIONS[0]), options=(*GPU, *FEW), env=env)
    counts = {name: int(n) for name, n in (line.split() for line in counted.read_text().splitlines())}
    saved = session.read_bytes()
    n_states = len(json.loads((made[BOTH] / "plan-vulkan.json").read_text())["states"])
    before = 1 + n_states  # imported weights are tried, and each state is shipped

    def fails(fault: str, said: str, *options: str, stdin: str = "") -> None:
        more = ("--session", str(session), "--temperature", "0", *FEW, *options)
        done = call(made[BOTH], "chat", *more, stdin=stdin, **with_fault(loader, fault))
        assert done.returncode > 0, fault
        assert f"edgellm-rt: {said}" in done.stderr, fault

    fails(f"vkQueueSubmit:{before + 1}:{LOST}", f"GPU_LOST: {session}: ", *GPU)
    fails(f"vkAllocateMemory:{counts['vkAllocateMemory']}:{NO_MEMORY}", "NO_MEMORY: the prompts' beginning", *GPU)
    assert session.read_bytes() == saved
    session.unlink()
    question = QUESTIONS[0] + "\n"
    fails(f"vkQueueSubmit:{counts['vkQueueSubmit']}:{LOST}", f"GPU_LOST: {session}: ", *GPU, stdin=question)
    assert not list(tmp_path.glob("work*"))
    free = call(made[BOTH], "run", "-p", "Hello.", "-n", "2", **with_fault(loader, f"vkQueueSubmit:1:{LOST}"))
    assert free.returncode == 0, free.stderr
    assert "the processor computes: the prompts' beginning" in free.stderr
