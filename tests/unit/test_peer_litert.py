"""LiteRT-LM beside us: what it is given, what it is asked, and how its rows stand beside another peer's.

The packages are stood in for by a few lines each, 2 GB being too much for a test; everything else is what runs.
"""

import copy
import json
import venv
from pathlib import Path

import numpy as np
import pytest

from crosscompile import checkpoint
from edgellm import bench, comparison, litert_lm, peer_report, peer_result
from edgellm.bundle import Bundle
from edgellm.chart import chart
from edgellm.errors import PeerError, UsageError
from edgellm.figure import Figure
from edgellm.full_checkpoint import write_full
from edgellm.hub import resolve
from edgellm.litert_lm import LiteRtLm
from edgellm.peer_bench import Cell, Match, cells
from edgellm.sample import run_once
from tests.unit.test_peer import DOCUMENT, arguments, row

PROGRAM = """\
import dataclasses

class Backend:
    @dataclasses.dataclass
    class CPU:
        thread_count: int

@dataclasses.dataclass
class Benchmark:
    model_path: str
    backend: object
    prefill_tokens: int
    decode_tokens: int
    use_ringbuffers_local_attention: bool
    runs: int = 0

    def run(self):
        self.runs += 1
        open(self.model_path).close()
        self.last_prefill_token_count, self.last_decode_token_count = self.prefill_tokens, self.decode_tokens
        self.last_prefill_tokens_per_second = 1000.0 * self.backend.thread_count + self.runs
        self.last_decode_tokens_per_second = 100.0 * self.backend.thread_count + self.runs
        return self
"""

EXPORTER = """\
import importlib.util
import pathlib
from tensorflow.lite.python import schema_py_generated
assert schema_py_generated.IS_REAL
assert importlib.util.find_spec("tensorflow").origin is None  # torch asks for it

def export(model, output_dir, cache_length):
    files = sorted(file.name for file in pathlib.Path(model).iterdir())
    pathlib.Path(output_dir).mkdir()
    pathlib.Path(output_dir, "model.litertlm").write_text(f"{cache_length} {' '.join(files)}")
"""

EXPORT = "litert_torch/generative/export_hf/export.py"


@pytest.fixture
def cache_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("EDGELLM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def environment(tmp_path):
    """A virtual environment with the packages' stand-ins."""
    folder = tmp_path / "environment"
    venv.create(folder, with_pip=False, symlinks=True)
    for name, text in {
        "litert_lm/__init__.py": PROGRAM,
        "ai_edge_litert/schema_py_generated.py": "IS_REAL = True\n",
        EXPORT: EXPORTER,
        "litert_lm_api-0.18.1.dist-info/METADATA": "Name: litert-lm-api\nVersion: 0.18.1\n",
        "litert_torch-0.10.0.dist-info/METADATA": "Name: litert-torch\nVersion: 0.10.0\n",
    }.items():
        file = packages(folder) / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return folder


def packages(environment: Path) -> Path:
    return next(environment.glob("lib/python*/site-packages"))


def silent(*_: object) -> None:
    pass


def bundle(digest: str = "0") -> Bundle:
    manifest = {"model": {"name": "tiny", "context_length": 512}, "provenance": {"checkpoint": digest}}
    return Bundle(Path("nowhere"), manifest, "", ())


def test_a_checkpoint_written_out_holds_the_same_numbers(tmp_path, cache_folder):
    source = checkpoint.load(resolve("random:tiny")[0])
    shown = []
    write_full(source, tmp_path, lambda stage, done, total: shown.append((done, total)))
    written = checkpoint.load(tmp_path)
    assert written.config == {**source.config, "torch_dtype": "float32"}
    assert written.tokenizer_json == source.tokenizer_json
    assert written.tokenizer_config["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert written.generation_config == {"bos_token_id": 1, "eos_token_id": 2}
    assert list(written.tensors) == list(source.tensors)
    for name in source.tensors:
        np.testing.assert_array_equal(written.read(name), source.read(name))
    assert shown[-1][0] == shown[-1][1] == sum(info.n_bytes for info in written.tensors.values())


def test_each_cache_length_is_exported_once(environment, cache_folder):
    source = checkpoint.load(resolve("random:tiny")[0])
    figures = (Figure("decode", 64, 128), Figure("prefill", 128), Figure("prefill", 512))
    peer = LiteRtLm(environment)
    folder = peer.prepare(source, bundle(), figures, silent)
    files = "config.json generation_config.json model.safetensors tokenizer.json tokenizer_config.json"
    assert {file.name: file.read_text() for file in folder.iterdir()} == {
        "cache-512.litertlm": f"512 {files}",
        "cache-640.litertlm": f"640 {files}",
    }
    (folder / "cache-512.litertlm").write_text("kept")
    assert peer.prepare(source, bundle(), figures[:2], silent) == folder
    assert (folder / "cache-512.litertlm").read_text() == "kept"
    assert peer.prepare(source, bundle("1"), figures, silent) != folder


def test_an_export_that_fails_is_quoted_and_leaves_nothing(environment, cache_folder):
    exporter = packages(environment) / EXPORT
    exporter.write_text("def export(*_, **__): raise ValueError('no recipe for this model')\n")
    source = checkpoint.load(resolve("random:tiny")[0])
    with pytest.raises(PeerError, match="ValueError: no recipe"):
        LiteRtLm(environment).prepare(source, bundle(), LiteRtLm.figures, silent)
    exporter.write_text("def export(*_, **__): pass\n")
    with pytest.raises(PeerError, match=r"no \.litertlm"):
        LiteRtLm(environment).prepare(source, bundle(), LiteRtLm.figures, silent)
    assert not [file for file in (cache_folder / "peers").rglob("*") if file.is_file()]


@pytest.mark.parametrize(
    ("figure", "length", "value"),
    [(Figure("decode", 64), 512, 202.0), (Figure("prefill", 128), 512, 2002.0), (Figure("prefill", 512), 640, 2002.0)],
)
def test_a_sample_is_the_second_run_with_the_fitting_export(environment, tmp_path, figure, length, value):
    peer = LiteRtLm(environment)
    (tmp_path / f"cache-{length}.litertlm").touch()
    cell = Cell(Match("w8a8", bundle(), tmp_path, tmp_path, (figure,)), figure, 2)
    assert cell.value("peer", peer, run_once(cell.command("peer", peer))) == value


def test_an_answer_about_other_tokens_is_refused(environment, tmp_path):
    peer, figure = LiteRtLm(environment), Figure("decode", 64, 128)
    (tmp_path / "cache-512.litertlm").touch()
    short = Cell(Match("w8a8", bundle(), tmp_path, tmp_path, ()), Figure("decode", 63, 128), 1)
    sample = run_once(short.command("peer", peer))
    with pytest.raises(PeerError, match="not understood"):
        Cell(short.match, figure, 1).value("peer", peer, sample)


def test_it_says_its_versions_and_what_its_numbers_are(environment):
    assert LiteRtLm(environment).about() == {"package": "litert-lm-api 0.18.1, litert-torch 0.10.0"}
    assert "one scale per output channel" in LiteRtLm.note
    assert LiteRtLm(environment).types({"body": "w4a8"})["body"] == "int8, a scale per channel"


def test_packages_that_cannot_be_had_leave_no_environment_that_counts(monkeypatch, cache_folder):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    with pytest.raises(PeerError, match="pip's index"):
        litert_lm.environment(silent)
    assert not list((cache_folder / "peers").glob("*/.installed"))


def test_rows_of_two_peers_stand_in_tables_of_their_own(capsys):
    theirs = {
        **copy.deepcopy(DOCUMENT),
        "peers": {"litert-lm": {"package": "litert-lm-api 0.18.1", "note": "coarser numbers."}},
        "rows": [row("decode", 128, [200, 220, 210], [70, 75, 70], peer="litert-lm", peer_bytes_per_token=None)],
        "sizes": {"smollm2-135m, w4a8": {"edgellm": 280_000, "litert-lm": 131_000_000}},
        "instructions": [],
    }
    both = peer_result.merge(copy.deepcopy(DOCUMENT), theirs)
    assert len(both["rows"]) == len(DOCUMENT["rows"]) + 1
    text = peer_report.markdown(both, "edgellm bench")
    first, second = text.split("**Speed beside litert-lm**")
    assert "| decode 64 at 128, tok/s | 210.0 | 145.0 | 1.45 |" in first
    assert (
        "| decode 64 at 128, tok/s | 210.0 | 70.0 | 3.00 | 2.86–3.00 | 90.0 | 18.9 of 20.0 | 94% bound |  |" in second
    )
    assert "**litert-lm**: coarser numbers." in first
    assert "llama.cpp 0c1e570, from llama-cpp-python 0.3.36. litert-lm, from litert-lm-api 0.18.1." in text
    assert "| smollm2-135m, w4a8 | 280.0 kB | 6.1 MB | 131.0 MB |" in text
    assert "smollm2-135m, w4a8, beside litert-lm" in chart(both)
    peer_report.show(both)
    assert "litert-lm: coarser numbers." in capsys.readouterr().out


def test_a_document_that_knew_one_peer_is_read_as_todays(tmp_path):
    old = copy.deepcopy(DOCUMENT)
    old |= {"format": 1, "peer": {"name": "llama.cpp", **old.pop("peers")["llama.cpp"]}}
    for one in old["rows"]:
        del one["peer"]
    old["sizes"] = {key: {"edgellm": n["edgellm"], "peer": n["llama.cpp"]} for key, n in old["sizes"].items()}
    (tmp_path / "performance.json").write_text(json.dumps(old))
    assert peer_result.read(tmp_path / "performance.json") == DOCUMENT


def test_each_peer_has_its_own_defaults():
    from edgellm.peer_cli import parse

    matches, figures, _ = parse(arguments("--peer", "litert-lm"))
    assert matches == ["w8a8", "w4a8"]
    assert [figure.name for figure in figures] == ["decode 64 at 0", "decode 64 at 128", "prefill 128", "prefill 512"]
    assert parse(arguments("--peer", "llama.cpp"))[0] == list(comparison.MATCHES)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (("--figures", "first@128"), "first@128 cannot be measured with litert-lm; there are decode, prefill"),
        (("--emulated", "all"), r"litert-lm cannot be counted; those of llama\.cpp can"),
    ],
)
def test_what_it_cannot_do_is_refused_before_anything_runs(argv, message):
    with pytest.raises(UsageError, match=message):
        bench.main(arguments("--peer", "litert-lm", *argv))


def test_cells_come_in_the_order_of_threads_and_figures(tmp_path):
    match = Match("w8a8", bundle(), tmp_path, tmp_path, LiteRtLm.figures)
    assert [(cell.threads, cell.figure) for cell in cells([match], (1, 2))] == [
        (n, figure) for n in (1, 2) for figure in LiteRtLm.figures
    ]
