"""edgellm-rt on a real bundle of a random model: every command as a user or the host calls it."""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edgellm import bundle as bundles
from edgellm.compile import compile_model
from edgellm.peer_bench import weight_bytes_per_token
from tests.oracle.configurations import BASE, write_checkpoint


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("program")
    model = write_checkpoint(folder / "model", {**BASE, "max_position_embeddings": 4096})
    return compile_model(model, "local", "w4a8", folder / "bundle").path


def rt(bundle: Path, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    command, rest = arguments[0], arguments[1:]
    argv = [str(bundle / "edgellm-rt"), command, str(bundle), *rest]
    return subprocess.run(argv, capture_output=True, text=True, timeout=120, check=False, errors="strict", **options)


def answer(bundle: Path, *arguments: str) -> dict[str, Any]:
    done = rt(bundle, *arguments, "--json")
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def fails(done: subprocess.CompletedProcess[str], status: int, name: str, text: str) -> None:
    """One line on standard error with the status's name, and its number as the exit code."""
    assert re.fullmatch(rf"edgellm-rt: {name}: .*{text}.*\n", done.stderr), done.stderr
    assert done.returncode == status


class Conversation:
    """`chat --jsonl` as the host talks to it."""

    def __init__(self, bundle: Path, *arguments: str) -> None:
        argv = [str(bundle / "edgellm-rt"), "chat", str(bundle), "--jsonl", *arguments]
        self.process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self.receive()["type"] == "ready"

    def send(self, **message: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(message).encode() + b"\n")
        self.process.stdin.flush()

    def receive(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        message: dict[str, Any] = json.loads(self.process.stdout.readline().decode("utf-8", "strict"))
        return message

    def until_done(self) -> list[dict[str, Any]]:
        messages = [self.receive()]
        while messages[-1]["type"] not in ("done", "error"):
            messages.append(self.receive())
        return messages

    def ask(self, text: str) -> list[dict[str, Any]]:
        self.send(type="user", text=text)
        return self.until_done()

    def close(self) -> int:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        code = self.process.wait(30)
        self.process.stdout.close()
        return code


@pytest.fixture
def talk(bundle: Path) -> Iterator[Any]:
    started: list[Conversation] = []

    def start(*arguments: str) -> Conversation:
        started.append(Conversation(bundle, *arguments))
        return started[-1]

    yield start
    for each in started:
        if each.process.poll() is None:
            each.process.kill()
            each.process.wait()
        for stream in (each.process.stdin, each.process.stdout):
            if stream is not None and not stream.closed:
                stream.close()


GREEDY = ("--temperature", "0")


def test_run_streams_what_json_reports(bundle: Path) -> None:
    told = answer(bundle, "run", "-p", "Hello", "-n", "12", *GREEDY)
    assert told["reason"] in ("length", "stop")
    assert 0 < len(told["ids"]) == told["tokens"] <= 12
    assert told["prompt_tokens"] == len(told["prompt_ids"]) > len("Hello")  # the template adds its own
    streamed = rt(bundle, "run", "-p", "Hello", "-n", "12", *GREEDY)
    assert streamed.stdout.removesuffix("\n") == told["text"].removesuffix("\n")
    assert "tok/s" in streamed.stderr
    raw = answer(bundle, "run", "-p", "Hello", "--raw", "-n", "1", *GREEDY)
    assert raw["prompt_ids"] == list(b"Hello")


def test_a_prompt_of_ids_is_taken_as_it_is(bundle: Path) -> None:
    first = answer(bundle, "run", "--tokens", "72,101,108", "-n", "6", *GREEDY)
    assert first["prompt_ids"] == [72, 101, 108]
    again = answer(bundle, "run", "--tokens", "72,101,108", "-n", "6", "--threads", "3", *GREEDY)
    assert again["ids"] == first["ids"]
    # Continuing half-way gives the same rest: the cache changes nothing.
    half = ",".join(map(str, [72, 101, 108, *first["ids"][:3]]))
    assert answer(bundle, "run", "--tokens", half, "-n", "3", *GREEDY)["ids"] == first["ids"][3:]


def test_a_seed_decides_the_answer(bundle: Path) -> None:
    options = ("run", "-p", "Hello", "-n", "24", "--temperature", "1.5", "--top-k", "100", "--top-p", "0.95")
    first, again = (answer(bundle, *options, "--seed", "7") for _ in range(2))
    assert first["ids"] == again["ids"]
    others = [answer(bundle, *options, "--seed", str(seed))["ids"] for seed in (8, 9)]
    assert any(ids != first["ids"] for ids in others)


def test_stop_strings(bundle: Path) -> None:
    free = answer(bundle, "run", "-p", "Hello", "-n", "40", "--temperature", "1", "--seed", "3")
    stop = free["text"][3:6]
    cut = answer(bundle, "run", "-p", "Hello", "-n", "40", "--temperature", "1", "--seed", "3", "--stop", stop)
    assert cut["text"] == free["text"].split(stop)[0]
    assert cut["reason"] == "stop"
    assert cut["tokens"] < free["tokens"]


def test_golden_accepts_and_refuses(bundle: Path, tmp_path: Path) -> None:
    fine = rt(bundle, "golden")
    assert (fine.returncode, "golden prompts" in fine.stdout) == (0, True), fine.stderr
    other = shutil.copytree(bundle, tmp_path / "other")
    manifest = json.loads((other / "manifest.json").read_text())
    assert manifest["golden"]
    manifest["golden"][0]["tokens"][1] = (manifest["golden"][0]["tokens"][1] + 1) % 259
    bundles.seal(other, {key: value for key, value in manifest.items() if key not in ("format", "files")})
    fails(rt(other, "golden"), 27, "KERNEL_FAILED", "golden prompt 1: token 2 is")


def test_verify_and_info(bundle: Path, tmp_path: Path) -> None:
    assert "intact" in rt(bundle, "verify").stdout
    shown = rt(bundle, "info").stdout
    assert "LlamaForCausalLM" in shown
    assert "w4a8" in shown
    told = answer(bundle, "info")
    assert told["manifest"] == json.loads((bundle / "manifest.json").read_text())
    damaged = shutil.copytree(bundle, tmp_path / "damaged")
    shard = next((damaged / "weights").glob("*layer*.safetensors"), next((damaged / "weights").glob("*.safetensors")))
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    fails(rt(damaged, "verify"), 21, "BUNDLE_CORRUPT", shard.name)
    fails(rt(damaged, "run", "-p", "x"), 21, "BUNDLE_CORRUPT", shard.name)


def test_bench_measures(bundle: Path) -> None:
    told = answer(bundle, "bench", "--prompt", "70", "--generate", "5", "--repeat", "2", "--threads", "2")
    for key in ("prefill_tok_s", "decode_tok_s", "ttft_ms", "load_ms", "peak_rss_bytes"):
        assert told[key] > 0, key
    assert (told["prompt"], told["generate"], told["threads"]) == (70, 5, 2)
    assert "time to first token" in rt(bundle, "bench", "--prompt", "8", "--generate", "2", "--repeat", "1").stdout


def series(bundle: Path, *arguments: str) -> list[dict[str, Any]]:
    done = rt(bundle, "bench", "--jsonl", *arguments)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_bench_takes_samples_of_several_lengths(bundle: Path) -> None:
    lengths = ("--prompt", "8,70", "--depth", "0,100", "--generate", "5", "--repeat", "2", "--threads", "2")
    said = series(bundle, *lengths, "--cold", "--sustained", "1")
    kinds = [message["type"] for message in said if message["type"] != "busy"]
    assert kinds[:3] == ["cold", "start", "open"]
    assert kinds[-1] == "end"
    taken = [(m["type"], m.get("prompt", m.get("depth"))) for m in said if m["type"] in ("prefill", "decode")]
    once = [("prefill", 8), ("prefill", 70), ("decode", 0), ("decode", 100)]
    assert taken == [sample for sample in once for _ in range(2)]
    assert all(message["ms"] > 0 and message["threads"] == 2 for message in said if message["type"] == "decode")
    windows = [message for message in said if message["type"] == "sustained"]
    assert windows[0]["tokens"] > 0
    assert windows[0]["at_s"] > said[3 + kinds[3:].index("prefill")].get("at_s", 0)
    starts = [message for message in said if message["type"] == "start"]
    assert [start["cold"] for start in starts] == [True, False, False]
    dropped = said[0]
    on_disk = sum(path.stat().st_size for path in bundle.rglob("*") if path.is_file() and path.name != "edgellm-rt")
    assert dropped["bytes"] == on_disk


def test_a_limit_takes_fewer_samples(bundle: Path) -> None:
    """More samples than fit into a second, each of more work than the clock can miss."""
    said = series(bundle, "--prompt", "512", "--depth", "0", "--repeat", "1000", "--limit", "1", "--threads", "1")
    assert 1 <= sum(message["type"] == "prefill" for message in said) < 1000


def test_bytes_of_a_step_are_the_weights_that_every_token_reads(bundle: Path) -> None:
    opened = next(message for message in series(bundle, "--prompt", "1", "--repeat", "1") if message["type"] == "open")
    assert opened["step_bytes"] == weight_bytes_per_token(bundles.read(bundle))


def test_bandwidth_needs_no_bundle(bundle: Path) -> None:
    argv = [str(bundle / "edgellm-rt"), "bench", "--bandwidth", "--threads", "1", "--json"]
    told = json.loads(subprocess.run(argv, capture_output=True, text=True, check=True, cwd="/").stdout)
    assert told["loops_gb_s"][told["fastest"]] == told["gb_s"] == max(told["loops_gb_s"].values())
    assert told["low_gb_s"] <= told["gb_s"] <= told["high_gb_s"]


def test_memory_is_what_is_used_and_not_what_might_be(bundle: Path) -> None:
    """Whatever the context may hold, memory is the weights, the positions that were used, and a small rest."""
    budget = bundles.read(bundle).manifest["memory"]
    peaks = []
    for context in (256, 4096):
        measured = answer(bundle, "bench", "--prompt=100", "--generate=28", "--repeat=1", f"--context={context}")
        used = 1.03 * budget["weight_bytes"] + 128 * budget["kv_bytes_per_token"] + 16e6
        assert measured["peak_rss_bytes"] <= used
        peaks.append(measured["peak_rss_bytes"])
    assert peaks[1] - peaks[0] < (4096 - 256) * budget["kv_bytes_per_token"] / 4


@pytest.mark.parametrize(
    "how", [("--temperature=0",), ("--temperature=0.8", "--seed=7"), ("--temperature=0", "--stop=a")]
)
def test_lookup_changes_no_token(bundle: Path, how: tuple[str, ...]) -> None:
    prompt = "--tokens=" + ",".join(str(i % 9 + 20) for i in range(60))
    answers = [answer(bundle, "run", prompt, "-n", "80", *how, f"--lookup={when}") for when in ("off", "on", "auto")]
    assert answers[0]["ids"] == answers[1]["ids"] == answers[2]["ids"]
    assert answers[0]["reason"] == answers[1]["reason"] == answers[2]["reason"]
    assert answers[0]["guessed"] == 0
    assert answers[1]["guessed"] >= answers[1]["accepted"]


def test_what_was_measured_is_remembered_and_may_be_rubbish(bundle: Path) -> None:
    pace = bundle / ".pace"
    pace.unlink(missing_ok=True)
    expected = answer(bundle, "run", "--tokens=1,2,3", "-n", "30", "--temperature=0")["ids"]
    assert pace.read_text().startswith("edgellm-pace 1 ")
    for text in ("", "rubbish", pace.read_text().replace("threads ", "threads 99")):
        pace.write_text(text)
        assert answer(bundle, "run", "--tokens=1,2,3", "-n", "30", "--temperature=0")["ids"] == expected
    fixed = answer(bundle, "run", "--tokens=1,2,3", "-n", "1", "--threads=2", "--threads-decode=1")
    assert (fixed["threads"], fixed["threads_decode"]) == (2, 1)


def test_the_bundles_own_program_needs_no_directory(bundle: Path) -> None:
    done = subprocess.run([str(bundle / "edgellm-rt"), "info"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("run",), "-p TEXT"),
        (("run", "-p", "x", "--tokens", "1"), "-p TEXT"),
        (("run", "-p", "x", "--frobnicate"), "--frobnicate"),
        (("run", "-p", "x", "--top-p", "2"), "from 0 to 1"),
        (("run", "--tokens", "1,two"), "'two'"),
        (("run", "-p", "x", "--context", "100000"), "at most 4096"),
        (("bench", "--prompt", "4000", "--generate", "4000"), "do not fit"),
        (
            ("bench", "--jsonl", "--depth", "4090"),
            "--depth 4090 and 64 tokens behind it do not fit the context of 4096",
        ),
        (("bench", "--jsonl", "--prompt", "8,4096"), "--prompt 4096 does not fit"),
        (("bench", "--jsonl", "--prompt", "8,,9"), "whole numbers from 1 to"),
        (("bench", "--jsonl", "--depth", "1,x"), "'1,x'"),
        (("bench", "--jsonl", "--depth", ",".join(["1"] * 17)), "up to 16 whole numbers"),
        (("bench", "--depth", "5"), "go with --jsonl"),
        (("bench", "--bandwidth", "--threads", "65"), "at most 64 threads"),
    ],
)
def test_wrong_usage_is_one_line(bundle: Path, arguments: tuple[str, ...], text: str) -> None:
    fails(rt(bundle, *arguments), 2, "USAGE", text)


def test_named_errors(bundle: Path, tmp_path: Path) -> None:
    argv = [str(bundle / "edgellm-rt"), "run", str(tmp_path / "nowhere"), "-p", "x"]
    fails(subprocess.run(argv, capture_output=True, text=True, check=False), 20, "BUNDLE_MISSING", "nowhere")
    fails(rt(bundle, "run", "--tokens", "1,5000"), 40, "TOKEN_RANGE", "5000")
    fails(rt(bundle, "run", "--tokens", ",".join(["1"] * 65), "--context", "64"), 41, "CONTEXT_FULL", "65 tokens")


def test_interrupting_run_is_clean(bundle: Path) -> None:
    """Ctrl-C after the first piece of text: the rest of the answer is not computed, and the error says so."""
    argv = [
        str(bundle / "edgellm-rt"),
        "run",
        str(bundle),
        "-p",
        "Hi",
        "-n",
        "4000",
        "--temperature",
        "1",
        "--seed",
        "1",
    ]
    # Never a stop token: a user may interrupt any answer, but a test needs one that lasts.
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    os.read(process.stdout.fileno(), 1)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    if process.returncode == 0:
        pytest.skip("the answer was over before the interrupt")
    assert process.returncode == 43
    assert errors.decode().splitlines()[-1].startswith("edgellm-rt: CANCELLED: stopped after")


def test_conversation_keeps_what_it_computed(talk: Any) -> None:
    chat = talk("-n", "8", "--temperature", "1", "--seed", "2")
    first = chat.ask("Hello")
    assert [m["type"] for m in first[:-1]] == ["text"] * (len(first) - 1)
    done = first[-1]
    assert done["type"] == "done"
    assert done["reason"] in ("stop", "length")
    assert done["reused_tokens"] == 0
    second = chat.ask("And now?")[-1]
    assert second["prompt_tokens"] > done["prompt_tokens"]
    assert second["reused_tokens"] >= done["prompt_tokens"] - 1
    chat.send(type="reset")
    third = chat.ask("Hello")
    assert third[-1]["prompt_tokens"] == done["prompt_tokens"]
    assert "".join(m["text"] for m in third[:-1]) == "".join(m["text"] for m in first[:-1])  # the cache changes nothing
    chat.send(type="system", text="Be brief.")
    assert chat.ask("Hello")[-1]["prompt_tokens"] > third[-1]["prompt_tokens"]
    assert chat.close() == 0


def share_in_memory(path: Path) -> float:
    """How much of a file the page cache holds."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    size = path.stat().st_size
    with path.open("rb") as file:
        start = libc.mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, file.fileno(), 0)
    pages = (ctypes.c_ubyte * -(-size // mmap.PAGESIZE))()
    assert libc.mincore(ctypes.c_void_p(start), ctypes.c_size_t(size), pages) == 0
    libc.munmap(ctypes.c_void_p(start), ctypes.c_size_t(size))
    return sum(page & 1 for page in pages) / len(pages)


def test_weights_are_read_before_anybody_asks(bundle: Path, talk: Any) -> None:
    shards = sorted((bundle / "weights").glob("layer*.safetensors"))
    for shard in shards:
        with shard.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    if max(map(share_in_memory, shards)) > 0:
        pytest.skip("this file system keeps its files in memory")
    talk()
    deadline = time.monotonic() + 60
    while min(map(share_in_memory, shards)) < 0.2:  # the 64 KB of a header need not be there
        assert time.monotonic() < deadline, list(map(share_in_memory, shards))
        time.sleep(0.05)


def test_cancel_while_generating(talk: Any) -> None:
    chat = talk("--temperature", "1.2", "--seed", "5", "--context", "4096")
    for question in ["Hi", "Go on", "More", "Again"] * 10:  # an answer may be over before it can be cancelled
        chat.send(type="user", text=question)
        chat.receive()
        chat.send(type="cancel")
        done = chat.until_done()[-1]
        assert done["type"] == "done"
        if done["reason"] == "cancelled":
            break
    assert done["reason"] == "cancelled"
    assert chat.ask("Still there?")[-1]["type"] == "done"
    assert chat.close() == 0


def test_full_context_drops_the_oldest_turns(talk: Any) -> None:
    chat = talk("--context", "192", "-n", "4", "--system", "S", *GREEDY)
    notices = []
    for number in range(8):
        messages = chat.ask(f"question {number}, with some words")
        assert messages[-1]["type"] == "done", messages
        assert messages[-1]["prompt_tokens"] < 192
        notices += [m["text"] for m in messages if m["type"] == "notice"]
    assert notices
    assert "oldest" in notices[0]
    error = chat.ask("x" * 500)[-1]
    assert (error["type"], error["name"]) == ("error", "CONTEXT_FULL")
    assert chat.ask("short")[-1]["type"] == "done"  # and the conversation goes on
    assert chat.close() == 0


def test_rubbish_gets_a_named_error(talk: Any) -> None:
    chat = talk("-n", "2", *GREEDY)
    for line in (
        b"rubbish\n",
        b"[]\n",
        b'{"type":"user"}\n',
        b'{"type":"fly"}\n',
        b'{"type":"user","text":7}\n',
        b"\xff\xfe\n",
    ):
        chat.process.stdin.write(line)
        chat.process.stdin.flush()
        error = chat.receive()
        assert (error["type"], error["name"]) == ("error", "USAGE"), line
    assert chat.ask("a\u0000b \ud83d\ude00")[-1]["type"] == "done"
    assert chat.close() == 0


def test_plain_chat_reads_lines(bundle: Path) -> None:
    done = rt(bundle, "chat", "-n", "6", *GREEDY, input="Hello\n/reset\n/quit\nnever read\n")
    assert done.returncode == 0
    assert done.stdout.endswith("\n")
    assert "forgotten" in done.stderr


def test_what_is_not_utf8_is_refused(bundle: Path) -> None:
    fails(rt(bundle, "run", "--prompt", "a\udcffb"), 47, "TEXT_INVALID", "the text is not UTF-8")
    fails(rt(bundle, "chat", "--system", "a\udcffb", input=""), 47, "TEXT_INVALID", "--system: the text is not UTF-8")
    argv = [str(bundle / "edgellm-rt"), "chat", str(bundle), "-n", "6", *GREEDY]
    done = subprocess.run(argv, capture_output=True, timeout=120, check=True, input=b"a\xffb\nHello\n")
    alone = subprocess.run(argv, capture_output=True, timeout=120, check=True, input=b"Hello\n")
    assert b"the text is not UTF-8" in done.stderr
    assert done.stdout == alone.stdout  # it is forgotten, and the conversation goes on
