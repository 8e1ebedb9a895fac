"""What tests.campaigns.gpu measures where the GPU is, with Python's standard library alone; --stage copies it there.

    python3 gpu_run.py DIR [--rounds 3] [--generate 64] [--json FILE]

In DIR are plan.json (what to measure), bundles, and perhaps llama.cpp's llama-bench. Weights that were left out are
made first: a file is the parts of its recipe, one after the other, each as many bytes of a pattern as it says.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

TIMEOUT_S = 1800


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="DIR")
    parser.add_argument("--rounds", type=int, metavar="N", help="of all figures, in turn with the peer")
    parser.add_argument("--generate", type=int, metavar="N", help="tokens to decode for a figure")
    parser.add_argument("--json", type=Path, metavar="FILE", help="every sample")
    arguments = parser.parse_args(argv)
    plan = json.loads((arguments.folder / "plan.json").read_text())
    for name in ("rounds", "generate"):
        plan[name] = getattr(arguments, name) or plan[name]
    return run(arguments.folder.absolute(), plan, arguments.json)


def run(folder: Path, plan: dict[str, Any], out: Path | None = None) -> int:
    """Measures everything and prints it; 0 if all of it ran. plan: of tests.campaigns.gpu."""
    result = {"taken": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "plan": plan, "models": []}
    for model in plan["models"]:
        bundle = folder / model["bundle"]
        fill_all(folder, model)
        program = bundle / "edgellm-rt"
        if "bandwidth" not in result:
            result["gpus"] = [json.loads(line) for line in said([program, "gpus"]).splitlines()]
            result["bandwidth"] = json.loads(said([program, "bench", "--bandwidth", "--device", "vulkan", "--json"]))
            print_bandwidth(result["bandwidth"])
        found = measure(folder, model, plan)
        result["models"].append(found)
        print_model(model, found, plan["generate"], result["bandwidth"])
        if out is not None:
            out.write_text(json.dumps(result, indent=1) + "\n")
    return 0 if all(it["golden_ok"] for it in result["models"]) else 1


def said(command: Sequence[Any], environment: Mapping[str, str] | None = None) -> str:
    """What a command prints. SystemExit with its words if it fails."""
    done = subprocess.run(
        [str(part) for part in command],
        capture_output=True,
        text=True,
        env={**os.environ, **(environment or {})},
        timeout=TIMEOUT_S,
        check=False,
    )
    if done.returncode:
        words = done.stderr.strip().splitlines() or ["it says nothing"]
        raise SystemExit(f"{Path(command[0]).name}: {words[-1]} (status {done.returncode})")
    return done.stdout


# ---- files that were left out ----


def fill_all(folder: Path, model: Mapping[str, Any]) -> None:
    for recipe in model.get("recipes", []):
        file = folder / recipe["file"]
        if not file.is_file() or file.stat().st_size != recipe["bytes"]:
            fill(file, recipe, folder / (recipe["file"] + ".patterns"))
    if model.get("recipes"):
        said([folder / model["bundle"] / "edgellm-rt", "verify", folder / model["bundle"]])


def fill(file: Path, recipe: Mapping[str, Any], patterns: Path) -> None:
    """recipe["parts"]: [bytes, of a pattern of so many bytes], which lie one after the other in `patterns`."""
    partial = file.with_name(file.name + ".partial")
    with patterns.open("rb") as source, partial.open("wb") as target:
        for n_bytes, period in recipe["parts"]:
            pattern = source.read(period)
            block = pattern * max(1, (1 << 20) // max(period, 1))
            for at in range(0, n_bytes, len(block)):
                target.write(block[: min(len(block), n_bytes - at)])
    partial.replace(file)


# ---- measuring ----


def measure(folder: Path, model: Mapping[str, Any], plan: Mapping[str, Any]) -> dict[str, Any]:
    bundle = folder / model["bundle"]
    found = {"name": model["name"], "golden": golden(bundle), "figures": {}, "gpu": []}
    # without expected logits, the golden prompts only show that logits are numbers
    found["golden_ok"] = "error" not in found["golden"]
    context = min(json.loads((bundle / "manifest.json").read_text())["model"]["context_length"], 4096)
    figures = [("prefill", n) for n in plan["prompt"] if n < context]
    figures += [("decode", n) for n in plan["depth"] if n + plan["generate"] < context]
    for round_ in range(plan["rounds"]):
        for kind, n in figures:
            for side in ("ours", "peers") if round_ % 2 == 0 else ("peers", "ours"):
                samples = found["figures"].setdefault(f"{kind} {n}", {"ours": [], "peers": []})
                if side == "ours":
                    answer = ours(bundle, kind, n, plan["generate"])
                    samples["ours"].append(answer[kind + "_tok_s"])
                    found["gpu"].append(answer["gpu"])
                elif model.get("peer") and plan.get("llama_bench"):
                    samples["peers"].append(peers(folder, plan, model["peer"], kind, n))
    return found


def golden(bundle: Path) -> dict[str, Any]:
    command = [str(bundle / "edgellm-rt"), "golden", str(bundle), "--device", "vulkan", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    if done.returncode:
        return {"error": (done.stderr.strip().splitlines() or [""])[-1]}
    return json.loads(done.stdout)


def ours(bundle: Path, kind: str, n: int, generate: int) -> dict[str, Any]:
    sizes = ["--prompt", max(n, 1), "--generate", generate if kind == "decode" else 1, "--repeat", "1"]
    return json.loads(said([bundle / "edgellm-rt", "bench", bundle, "--device", "vulkan", "--json", *sizes]))


def peers(folder: Path, plan: Mapping[str, Any], model: str, kind: str, n: int) -> float:
    sizes = ["-p", n, "-n", 0] if kind == "prefill" else ["-p", 0, "-n", plan["generate"], "-d", n]
    command = [folder / plan["llama_bench"], "-m", folder / model, "-ngl", 99, "-r", 1, "-o", "json", *sizes]
    libraries = str((folder / plan["llama_bench"]).parent)
    environment = {"GGML_VK_VISIBLE_DEVICES": "0", "LD_LIBRARY_PATH": libraries}
    return json.loads(said(command, environment))[0]["avg_ts"]


# ---- saying it ----


def line(what: str, mine: str = "", other: str = "", ratio: str = "") -> None:
    print(f"  {what:36}{mine:>12}{other:>12}{ratio:>9}", flush=True)


def percent(value: float) -> str:
    return f"{100 * value:.0f} %"


def print_bandwidth(rate: Mapping[str, Any]) -> None:
    print(rate["gpu"] + (", whose memory is the processor's" if rate["one_memory"] else ""))
    line("reads, GB/s", f"{rate['gb_s']:.1f}")
    line("copies what the processor wrote, GB/s", f"{rate['copy_gb_s']:.1f}")


def print_model(
    model: Mapping[str, Any], found: Mapping[str, Any], generate: int, bandwidth: Mapping[str, Any]
) -> None:
    print()
    line(model["name"], "edgellm", "llama.cpp", "ratio")
    proof = found["golden"]
    if not found["golden_ok"]:
        print(f"  golden prompts FAILED: {proof['error']}")
    elif model.get("recipes"):
        print("  golden prompts: logits are numbers; weights are fillings, which nobody else has computed with")
    else:
        farthest = f"the farthest logit is off by {proof.get('farthest', 0):.3f}"
        print(f"  golden prompts: {proof['same']} of {proof['tokens']} tokens agree, {farthest}")
    gpu = found["gpu"][0] if found["gpu"] else {}
    for name, samples in found["figures"].items():
        mine = statistics.median(samples["ours"])
        other = statistics.median(samples["peers"]) if samples["peers"] else 0
        line(
            f"{name}, tokens/s", f"{mine:.1f}", f"{other:.1f}" if other else "", f"{mine / other:.2f}" if other else ""
        )
        if name.startswith("decode"):
            positions = int(name.split()[1]) + generate // 2
            gb_s = (gpu["step_bytes"] + gpu["kv_bytes_per_token"] * positions) * mine / 1e9
            line("  reads GB/s, of what can be read", f"{gb_s:.1f}", percent(gb_s / bandwidth["gb_s"]))
    print_upload(found["gpu"], bandwidth)


def print_upload(gpus: Sequence[Mapping[str, Any]], bandwidth: Mapping[str, Any]) -> None:
    copied = [gpu for gpu in gpus if gpu["uploaded_bytes"] > 0 and gpu["upload_gb_s"] > 0]
    if not copied:
        print("  upload: none, weights lie where the processor has them")
        return
    rate = statistics.median(gpu["upload_gb_s"] for gpu in copied)
    waits = [gpu["upload_wait_ms"] * gpu["upload_gb_s"] * 1e6 / gpu["uploaded_bytes"] for gpu in copied]
    line("upload, GB/s, of what can be copied", f"{rate:.1f}", percent(rate / bandwidth["copy_gb_s"]))
    line("  of that, waiting for the GPU", percent(statistics.median(waits)))


if __name__ == "__main__":
    sys.exit(main())
