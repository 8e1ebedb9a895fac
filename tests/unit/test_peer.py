"""A comparison with a peer: in turn, with equal numbers, and reported so that nobody has to trust it."""

import argparse
import copy
import json
import struct
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest

from crosscompile import checkpoint
from crosscompile.packing import dequantize, quantize
from edgellm import (
    bench,
    cli,
    comparison,
    gguf_file,
    gguf_llama,
    llama_cpp,
    peer,
    peer_bench,
    peer_cli,
    peer_report,
    peer_result,
    sample,
)
from edgellm.chart import chart
from edgellm.errors import PeerError, UsageError
from edgellm.figure import Figure, fit
from edgellm.hub import resolve
from edgellm.sample import Quiet, Sample


def taken(side: str, round_: int, value: float, **more: float) -> dict:
    about = {"wall_s": 1.0, "other_cpu": 0.01, "peak_rss_bytes": 100_000_000, "major_faults": 0}
    return {"side": side, "round": round_, "value": value, **about, **more}


def row(kind: str, depth: int, ours: list[float], theirs: list[float], threads: int = 1, **more: object) -> dict:
    bandwidth = {"bandwidth_gb_s": 20.0} if kind == "decode" else {}
    samples = [taken("edgellm", i, value, **bandwidth) for i, value in enumerate(ours)]
    samples += [taken("peer", i, value, **bandwidth) for i, value in enumerate(theirs)]
    return {
        "peer": "llama.cpp",
        "model": "smollm2-135m",
        "match": "w4a8",
        "threads": threads,
        "figure": {"kind": kind, "tokens": 64 if kind == "decode" else 128, "depth": depth},
        "unit": "ms" if kind == "first_token" else "tok/s",
        "bytes_per_token": 90_000_000 if kind == "decode" else None,
        "limit_bytes": 110_000_000,
        "samples": samples,
        **more,
    }


DOCUMENT = {
    "format": 2,
    "machine": {"cpu": "A|B CPU", "n_cores": 2, "tier": "avx2", "ram_bytes": 1, "kernel": "6.1"},
    "peers": {"llama.cpp": {"commit": "0c1e570", "package": "llama-cpp-python 0.3.36"}},
    "rows": [
        row("decode", 128, [200, 220, 210], [140, 150, 145]),
        row("decode", 2048, [100, 110, 105], [70, 60, 65]),
        row("first_token", 0, [300, 250, 200], [500, 500, 600], threads=2),
    ],
    "sizes": {"smollm2-135m, w4a8": {"edgellm": 280_000, "llama.cpp": 6_100_000}},
    "instructions": [
        {"model": "smollm2-135m", "match": "w4a8", "cpu": "cortex-a76", "side": side, "decode": n, "prefill": n / 2,
         "weight_bytes_per_token": 90_000_000}
        for side, n in (("edgellm", 30e6), ("peer", 39e6))
    ],
}  # fmt: skip


def test_each_side_goes_first_in_half_of_the_samples():
    order = list(peer_bench.schedule([None] * 3, 4))
    assert [(round_, index) for round_, index, _ in order] == [(r, i) for r in range(4) for i in range(3)]
    for index in range(3):
        first = [sides[0] for _, i, sides in order if i == index]
        assert first.count("edgellm") == first.count("peer") == 2
        assert first[0] != first[1]
    assert all(set(sides) == {"edgellm", "peer"} for *_, sides in order)


def test_a_ratio_above_one_is_better_whatever_the_unit():
    decode, _, first = (peer_result.statistics_of(row) for row in DOCUMENT["rows"])
    assert (decode.ours, decode.peer) == (210, 145)
    assert decode.ratio == pytest.approx(210 / 145)
    assert (decode.ratio_low, decode.ratio_high) == (pytest.approx(200 / 140), pytest.approx(220 / 150))
    assert decode.gb_s == pytest.approx(18.9)
    assert decode.share == pytest.approx(18.9 / 20)
    assert first.ratio == 2.0
    assert first.share is None


def test_a_later_run_replaces_what_it_measured_again_and_keeps_the_rest():
    again = {**DOCUMENT, "rows": [row("decode", 128, [1.0], [1.0])], "sizes": {}, "instructions": []}
    merged = peer_result.merge(copy.deepcopy(DOCUMENT), again)
    assert len(merged["rows"]) == 3
    assert peer_result.statistics_of(merged["rows"][0]).ours == 1.0
    assert merged["sizes"] == DOCUMENT["sizes"]
    assert len(merged["instructions"]) == 2


def test_the_document_survives_its_file(tmp_path):
    peer_result.write(DOCUMENT, tmp_path / "performance.json")
    assert peer_result.read(tmp_path / "performance.json") == DOCUMENT
    (tmp_path / "other.json").write_text('{"format": 99}')
    with pytest.raises(UsageError, match="remove it"):
        peer_result.read(tmp_path / "other.json")


def test_markdown_has_every_figure_and_the_command():
    text = peer_report.markdown(DOCUMENT, "edgellm bench --peer llama.cpp")
    assert "`edgellm bench --peer llama.cpp`" in text
    assert "| decode 64 at 128, tok/s | 210.0 | 145.0 | 1.45 | 1.43–1.47 | 90.0 | 18.9 of 20.0 | 94% bound |" in text
    assert "| first token of 128, ms | 250.0 | 500.0 | 2.00 |" in text
    assert "| smollm2-135m | w4a8 | 1 | 2048 | 50% | 45% |" in text
    assert "| 100.0 MB | 110.0 MB | yes | 100.0 MB |" in text
    assert "| 280.0 kB | 6.1 MB |" in text
    assert "| cortex-a76 | 30.00 M | 39.00 M | 1.30 | 15.00 M | 19.50 M | 1.30 | 0.33 | 0.43 |" in text
    for table in text.split("\n\n"):
        assert len({line.count("|") for line in table.splitlines() if line.startswith("|")}) <= 1, table


def test_only_the_part_between_the_markers_is_replaced(tmp_path):
    file = tmp_path / "performance.md"
    file.write_text(f"before\n{peer_report.BEGIN}\nold\n{peer_report.END}\nafter\n")
    for _ in range(2):
        peer_report.write_files(DOCUMENT, tmp_path, "make bench-peer")
    text = file.read_text()
    assert text.startswith("before\n")
    assert text.endswith(f"{peer_report.END}\nafter\n")
    assert "old" not in text
    assert text.count("**Speed beside llama.cpp**") == 1
    with pytest.raises(UsageError, match="measured: begin"):
        peer_report.fill("no markers", "text")


def test_the_chart_is_xml_with_a_bar_per_shown_figure():
    root = ElementTree.fromstring(chart(DOCUMENT))
    bars = root.findall("{http://www.w3.org/2000/svg}rect")
    assert [bar.get("class") for bar in bars] == ["better", "better"]
    widths = [float(bar.get("width")) for bar in bars]
    assert widths[1] / widths[0] == pytest.approx(2 / (210 / 145), rel=0.01)
    assert "prefers-color-scheme: dark" in ElementTree.tostring(root, encoding="unicode")


def test_tables_are_not_cut_off(capsys):
    peer_report.show(DOCUMENT)
    out = capsys.readouterr().out
    assert "decode 64 at 2048, tok/s" in out
    assert "…" not in out


@pytest.mark.parametrize(("kind", "type_"), [("w4", "Q4_0"), ("w8", "Q8_0")])
def test_gguf_blocks_stand_for_exactly_our_numbers(kind, type_):
    weight = np.random.Generator(np.random.PCG64(7)).standard_normal((6, 96)).astype(np.float32)
    raw = gguf_file.blocks(type_, weight).reshape(6, 3, -1)
    scale = raw[..., :2].copy().view("<f2").astype(np.float32)
    if type_ == "Q4_0":
        low, high = raw[..., 2:] & 15, raw[..., 2:] >> 4
        q = np.concatenate([low, high], -1).astype(np.int8) - 8
    else:
        q = raw[..., 2:].copy().view(np.int8)
    np.testing.assert_array_equal((q * scale).reshape(6, 96), dequantize(*quantize(kind, weight)))
    assert raw[0, 0].nbytes == gguf_file.row_bytes(type_, 32)


def read_gguf(data: bytes) -> tuple[dict, dict]:
    """(keys, tensors: name -> (shape, type, bytes)) of a file, by the format's description."""
    at = 0

    def take(code: str):
        nonlocal at
        values = struct.unpack_from(f"<{code}", data, at)
        at += struct.calcsize(f"<{code}")
        return values[0]

    def text() -> str:
        nonlocal at
        n = take("Q")
        at += n
        return data[at - n : at].decode()

    def value(kind: int):
        if kind == 9:
            inner, n = take("I"), take("Q")
            return [value(inner) for _ in range(n)]
        return text() if kind == 8 else take({4: "I", 5: "i", 6: "f", 7: "?"}[kind])

    assert data[:4] == b"GGUF"
    at = 4
    assert take("I") == 3
    n_tensors, n_keys = take("Q"), take("Q")
    keys = {}
    for _ in range(n_keys):
        name = text()
        keys[name] = value(take("I"))
    infos = [(text(), [take("Q") for _ in range(take("I"))], take("I"), take("Q")) for _ in range(n_tensors)]
    start = -(-at // 32) * 32
    return keys, {name: (tuple(shape[::-1]), kind, start + offset) for name, shape, kind, offset in infos}


@pytest.fixture
def cache_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("EDGELLM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_random_shape_becomes_a_gguf_file_with_the_scheme_of_each_part(tmp_path, cache_folder):
    directory, name = resolve("random:tiny:1")
    source, file = checkpoint.load(directory), tmp_path / "m.gguf"
    gguf_llama.write_llama(source, name, {"body": "w4a8", "embedding": "w4a8", "head": "w8a8"}, file)
    keys, tensors = read_gguf(file.read_bytes())
    assert keys["general.name"] == "tiny-1-layers"
    assert len(keys["tokenizer.ggml.tokens"]) == keys["llama.vocab_size"] == 512
    assert tensors["token_embd.weight"][:2] == ((512, 64), 8)  # tied: what the head is
    assert tensors["blk.0.attn_q.weight"][:2] == ((64, 64), 2)
    assert tensors["output_norm.weight"][:2] == ((64,), 0)
    # Row 1 of a head's 16 is row 8 of the checkpoint's: pairs (i, i + 8) side by side.
    at = tensors["blk.0.attn_q.weight"][2]
    rows = np.frombuffer(file.read_bytes(), np.uint8, 2 * 36, at).reshape(2, 36)
    weight = source.read("model.layers.0.self_attn.q_proj.weight")
    np.testing.assert_array_equal(rows, gguf_file.blocks("Q4_0", weight[[0, 8]]))
    ends = sorted((at, shape, kind) for shape, kind, at in tensors.values())
    assert all(at % 32 == 0 for at, *_ in ends)
    assert not list(tmp_path.glob(".*"))


def test_biased_and_rescaled_models_are_refused_by_name(tmp_path, cache_folder):
    directory, name = resolve("random:tiny")
    source = checkpoint.load(directory)
    source.config["rope_scaling"] = {"type": "linear"}
    with pytest.raises(PeerError, match="rope_scaling"):
        gguf_llama.write_llama(source, name, {}, tmp_path / "m.gguf")


def test_a_prompt_has_exactly_as_many_tokens_as_asked_for(cache_folder):
    from tokenizers import Tokenizer

    directory, _ = resolve("random:tiny")
    source = checkpoint.load(directory)
    text = comparison.prompt_text(source, 77)
    assert len(Tokenizer.from_str(source.tokenizer_json.decode()).encode(text).ids) == 77


def test_figures_are_cut_to_the_context():
    figures = (Figure("decode", 64, 2048), Figure("decode", 64, 128), Figure("prefill", 512))
    assert fit(figures, 8192) == figures
    assert fit(figures, 2048)[0].depth == 1984
    assert [it.name for it in fit(figures, 256)] == ["decode 64 at 192", "decode 64 at 128"]


def arguments(*argv: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    bench.add_arguments(parser)
    return parser.parse_args(argv)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ((), "which board"),
        (("random:tiny", "--board", "kitchen"), "goes with --peer"),
        (("--board", "kitchen", "-o", "docs"), "goes with --peer"),
        (("--peer", "llama.cpp", "--depth", "0,512"), "--depth does not go with --peer"),
        (("--peer", "llama.cpp", "--cold"), "--cold does not go with --peer"),
        (("--peer", "llama.cpp", "--compare", "a", "b"), "--compare does not go with --peer"),
        (("--peer", "llama.cpp", "--board", "kitchen"), "runs here"),
        (("--peer", "llama.cpp", "--weights", "w3"), "there are w4a8"),
        (("--peer", "llama.cpp", "--emulated", "z80"), "there are cortex-a76"),
        (("--peer", "llama.cpp", "--figures", "decode@many"), "decode@DEPTH"),
        (("--peer", "llama.cpp", "--figures", "prefill@0"), "decode@DEPTH"),
        (("--peer", "llama.cpp", "-o", "/dev/null/docs"), "Not a directory"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_runs(argv, message):
    with pytest.raises(UsageError, match=message):
        bench.main(arguments(*argv))


@pytest.mark.parametrize(("name", "program"), [("llama.cpp", "llama-bench"), ("litert-lm", "bin/python")])
def test_a_build_that_is_none_is_refused(tmp_path, name, program):
    with pytest.raises(PeerError, match=f"no {program}"):
        comparison.PEERS[name].find(tmp_path, lambda *_: None)


@pytest.mark.parametrize(("there", "missing"), [((), "cmake"), (("cmake",), "ninja"), (("cmake", "ninja"), "g\\+\\+")])
def test_a_missing_tool_is_named_with_its_remedy_before_the_download(
    tmp_path, monkeypatch, cache_folder, there, missing
):
    for name in there:
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(peer.sysconfig, "get_path", lambda name: str(tmp_path / "none"))
    monkeypatch.setattr(llama_cpp, "source", lambda progress: pytest.fail("it went on"))
    with pytest.raises(PeerError, match=missing) as error:
        llama_cpp.LlamaCpp.find(None, lambda *_: None)
    assert "install" in str(error.value)


def test_an_unknown_shape_names_the_known_ones(capsys, tmp_path):
    code = cli.main(["compile", "random:gpt-5", "--board", "local", "-o", str(tmp_path / "b")])
    assert code == 1
    assert "smollm2-135m" in capsys.readouterr().err


def test_a_sample_says_what_the_process_printed_and_took():
    done = sample.run_once(
        [sys.executable, "-c", "import sys; print('out'); sys.stderr.write('err'); x = b'1' * 10**8"]
    )
    assert (done.out.strip(), done.err) == ("out", "err")
    assert 100_000_000 < done.peak_rss_bytes < 200_000_000
    assert done.wall_s > 0


def test_a_small_process_is_not_charged_with_our_own_memory():
    ballast = bytearray(300_000_000)
    assert sample.run_once([sys.executable, "-c", "pass"]).peak_rss_bytes < 100_000_000
    assert ballast


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ((sys.executable, "-c", "raise SystemExit('no model')"), "failed with 1: no model"),
        ((sys.executable, "-c", "import os; os.kill(os.getpid(), 11)"), "signal 11"),
        (("/nowhere/llama-bench",), "No such file"),
    ],
)
def test_a_failing_program_is_quoted(command, message):
    with pytest.raises(PeerError, match=message):
        sample.run_once(command)


def test_a_program_that_hangs_is_ended():
    with pytest.raises(PeerError, match="not in 0 s"):
        sample.run_once([sys.executable, "-c", "import time; time.sleep(60)"], timeout_s=0.2)


def test_a_disturbed_sample_is_taken_again_and_the_quietest_counts():
    runs = iter([Sample("", "", 1, 0.9, 1, 0), Sample("", "", 1, 0.3, 1, 500), Sample("", "", 1, 0.5, 1, 0)])
    best = sample.run_quiet(["x"], Quiet(below=0.1, wait_s=0, tries=3), lambda command: next(runs))
    assert best.other_cpu == 0.5  # 0.3 had to read from the disk
    cold = iter([Sample("", "", 1, 0.9, 1, 500), Sample("", "", 2, 0.9, 1, 0)])
    assert sample.run_quiet(["x"], Quiet(), lambda command: next(cold)).wall_s == 2


def test_json_is_what_was_measured(monkeypatch, capsys, tmp_path):
    class Recorded:
        def __init__(self, *_: object) -> None:
            pass

        def measure(self, *_: object) -> dict:
            return DOCUMENT

    monkeypatch.setattr(peer_cli, "Comparison", Recorded)
    assert bench.main(arguments("--peer", "llama.cpp", "--json", "-o", str(tmp_path))) == 0
    assert json.loads(capsys.readouterr().out) == DOCUMENT
    assert sorted(path.name for path in Path(tmp_path).iterdir()) == [
        "performance.json", "performance.md", "performance.svg"
    ]  # fmt: skip


def test_reported_command_names_no_place_of_this_machine():
    argv = ["bench", "--peer", "llama.cpp", "random:tiny", "--peer-build", "/a/b", "-o", "docs", "--output=/c"]
    assert peer_cli._repeatable(argv) == "edgellm bench --peer llama.cpp random:tiny"
