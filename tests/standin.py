"""A bundle whose edgellm-rt is a small script: for tests of how bundles travel, not of what is in them.

The script keeps the contract of the real program: verify hashes everything, info all but the weights, golden and run
fail with named errors, chat speaks the JSON lines protocol. What `board` does, the store and the slots, is done by the
real program, to which the script hands over, as it does for `supervise`.
"""

from __future__ import annotations

import functools
import json
import platform
import shutil
import sys
from pathlib import Path
from typing import Any

from edgellm import bundle as bundles
from edgellm.bundle import Bundle

ARCH = {"x86_64": "x86_64", "aarch64": "aarch64"}.get(platform.machine(), platform.machine())

PROGRAM = r"""
import hashlib, json, os, sys, time
if sys.argv[1] in ("board", "supervise") and REAL:
    os.execv(REAL, [REAL, *sys.argv[1:]])
command, folder, rest = sys.argv[1], sys.argv[2], sys.argv[3:]

def fail(name, status, text):
    print(f"edgellm-rt: {name}: {text}", file=sys.stderr)
    sys.exit(status)

def content(path):
    with open(os.path.join(folder, path), "rb") as file:
        return file.read()

try:
    raw = content("manifest.json")
    if content("manifest.sha256").split()[0].decode() != hashlib.sha256(raw).hexdigest():
        fail("BUNDLE_CORRUPT", 21, "manifest.json does not match manifest.sha256")
    manifest = json.loads(raw)
    for path, entry in manifest["files"].items():
        if command == "verify" or not path.startswith("weights/"):
            if hashlib.sha256(content(path)).hexdigest() != entry["sha256"]:
                fail("BUNDLE_CORRUPT", 21, f"{path} does not match its checksum")
except FileNotFoundError as error:
    fail("BUNDLE_MISSING", 20, f"{error.filename} is missing")

def emit(**message):
    print(json.dumps(message), flush=True)

if command == "info":
    emit(manifest=manifest)
if command == "golden" and b"golden fails" in content("plan.json"):
    fail("KERNEL_FAILED", 27, "golden prompt 0: token 3 is 17 instead of 4")
if command == "golden":
    time.sleep(manifest["provenance"].get("golden_s", 0))
    ballast = b"x" * manifest["provenance"].get("ballast_bytes", 0)
    emit(golden=True, prompts=len(manifest["golden"]), tokens=1, ms=1.0)
if command == "run":
    print("You said: " + rest[rest.index("-p") + 1], flush=True)
    print("3 tokens", file=sys.stderr)
elif command == "bench":
    if "--bandwidth" in rest and "vulkan" in rest:
        emit(device="vulkan", gpu="Mali-G610", is_processor=False, one_memory=True, gb_s=20.0,
             low_gb_s=19.0, high_gb_s=21.0, copy_gb_s=9.0, fastest="x4 of 2048 groups")
        sys.exit(0)
    if "--bandwidth" in rest:
        emit(threads=int(rest[rest.index("--threads") + 1]), gb_s=1.0, low_gb_s=0.9, high_gb_s=1.1, fastest="plain x1")
        sys.exit(0)
    if "--json" in rest:
        emit(prefill_tok_s=100.0, decode_tok_s=10.0, ttft_ms=12.5, load_ms=3.0, peak_rss_bytes=123456789, threads=4)
        sys.exit(0)
    options = dict(zip(rest[1::2], rest[2::2]))
    emit(type="open", format=1, runtime="0", name="tiny", manifest_sha256="0" * 64, scheme="w4a8", tier="test",
         context=64, cores=4, generate=4, weight_bytes=1000, arena_bytes=1000, kv_bytes_per_token=10,
         step_bytes=50_000_000, sliding_window=0)
    emit(type="start", cold=False, load_ms=3.0, prompt=8, first_token_ms=15.5)
    for prompt in map(int, options["--prompt"].split(",")):
        emit(type="prefill", prompt=prompt, at_s=1.0, ms=prompt * 10.0, first_token_ms=12.5, threads=4)
    for depth in map(int, options["--depth"].split(",")):
        for ms in (400.0, 500.0):
            emit(type="decode", depth=depth, tokens=4, at_s=1.0, ms=ms, token_ms=100.0, token_p99_ms=110.0, threads=4)
    emit(type="end", peak_rss_bytes=123456789)
elif command == "chat":
    emit(type="ready", model=manifest["model"]["name"])
    for line in sys.stdin:
        message = json.loads(line)
        if message["type"] == "user" and message["text"] == "rubbish":
            print("\x1b[31mthis is not JSON", flush=True)
        elif message["type"] == "user" and message["text"] == "long":
            while True:  # until it is cancelled
                emit(type="text", text="tick ")
                import select
                if select.select([sys.stdin], [], [], 0.02)[0] and "cancel" in sys.stdin.readline():
                    emit(type="done", reason="cancelled", prompt_tokens=1, tokens=2, prefill_ms=1.0, decode_ms=1.0)
                    break
        elif message["type"] == "user":
            emit(type="text", text="You said: ")
            emit(type="text", text=message["text"] + "\x1b[2J")
            emit(type="done", reason="stop", prompt_tokens=5, tokens=4, prefill_ms=2.0, decode_ms=8.0)
"""


@functools.cache
def real_program() -> Path:
    """edgellm-rt for this machine."""
    from crosscompile.runtime import build_runtime
    from crosscompile.target import target_of_tier

    return build_runtime(target_of_tier({"x86_64": "avx2", "aarch64": "armv8-neon"}[ARCH]))


def make_bundle(
    directory: Path, files: dict[str, bytes] | None = None, *, deployable: bool = True, **manifest: Any
) -> Bundle:
    """A sealed bundle in `directory`. files: added to or replacing the usual ones; manifest: sections to merge.

    deployable: its program can deal with a store and slots, for which the real one is built.
    """
    content = {
        "weights/layer.0.safetensors": bytes(range(256)) * 64,
        "weights/layer.1.safetensors": b"one" * 5000,
        "weights/model.safetensors.index.json": b"{}",
        "kernels.so": b"\x7fELF kernels",
        "plan.json": b"{}",
        "tokenizer.bin": b"tokens",
        **(files or {}),
    }
    for path, data in content.items():
        (directory / path).parent.mkdir(parents=True, exist_ok=True)
        (directory / path).write_bytes(data)
    program = directory / "edgellm-rt"
    real = str(real_program()) if deployable else ""
    program.write_text(f"#!{sys.executable} -SE\nREAL = {json.dumps(real)}\n{PROGRAM}")
    program.chmod(0o755)
    document: dict[str, Any] = {
        "model": {"name": "tiny", "architecture": "LlamaForCausalLM", "vocab_size": 16, "context_length": 64}
        | {"sliding_window": 0, "n_layers": 2, "parameters": 1000},
        "scheme": {"name": "w4a8", "body": "w4a8", "embedding": "w8a8", "head": "w8a8", "kv": "f16"},
        "target": {"device": "cpu", "tier": "test", "arch": ARCH, "os": "linux", "cpu_features": []},
        "memory": {"weight_bytes": 1000, "arena_bytes": 1000, "arena_unplanned_bytes": 1000, "kv_bytes_per_token": 10},
        "generation": {"stop_ids": [0]},
        "golden": [{"prompt": [1], "tokens": [2]}],
        "provenance": {},
    }
    for key, section in manifest.items():
        document[key] = {**document.get(key, {}), **section}
    return bundles.seal(directory, document)


def put_in_place(home: Path, bundle: Bundle, name: str = "tiny") -> Path:
    """A bundle as the model in use below a board's home, without deploying it: for tests of what comes after."""
    slot = home / ".edgellm/models" / name / bundle.sha256[:16]
    shutil.copytree(bundle.path, slot)
    (slot.parent / "current").symlink_to(slot.name)
    return slot
