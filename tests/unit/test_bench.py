"""`edgellm bench`: what a board says is checked, statistics say what they may, pictures show the numbers."""

from __future__ import annotations

import itertools
import json
import random
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgellm import bandwidth, bench_compare, bench_report, bench_result, bench_run, bench_show, bundle, cli, plot
from edgellm.bench_result import Figure
from edgellm.bench_run import Wanted
from edgellm.boards import load_board
from edgellm.deployment import deploy
from edgellm.errors import CommandError, UnsuitableError, UsageError
from edgellm.fake import FakeRemote
from edgellm.local_remote import LocalRemote
from edgellm.runtime_program import InstalledModel, find_model
from tests.standin import PROGRAM, make_bundle


def document(decode: tuple[float, ...] = (10.0, 11.0, 12.0, 10.5, 11.5), **changes: Any) -> dict[str, Any]:
    """A result as bench_run makes it. changes: sections to merge."""
    figures = [
        Figure("prefill", (100.0, 120.0, 110.0), 128, 0, None, 4),
        Figure("first_token", (1000.0, 1200.0, 1100.0), 128, 0, None, 4),
        Figure("decode", decode, 64, 0, None, 2),
        Figure("decode", (5.0, 6.0), 64, 512, None, 2),
        Figure("start", (1500.0,), 64, 0, None, None),
    ]
    readings = [
        {"at_s": float(t), "temp_c": 40.0 + t, "clock_hz": 2.4e9, "throttled": 8 * (t > 5), "cooling": 0, "count": 0,
         "joules": 5.0 * t, "watts": 5.0}
        for t in range(11)
    ]  # fmt: skip
    windows = [{"at_s": float(t), "s": 1.0, "tokens": 20 - t} for t in range(1, 11)]
    made: dict[str, Any] = {
        "kind": bench_result.KIND,
        "format": bench_result.FORMAT,
        "edgellm": "0.1.0",
        "taken": "2026-01-01T00:00:00+00:00",
        "board": {"name": "kitchen", "type": "rpi5", "cpu": "Cortex-A76", "cores": 4},
        "model": {"name": "tiny", "scheme": "w4a8", "tier": "dotprod", "manifest_sha256": "0" * 64, "runtime": "0.1.0",
                  "context": 1024, "weight_bytes": 1_100_000_000, "arena_bytes": 1_000_000,
                  "kv_bytes_per_token": 10_000, "step_bytes": 1_000_000_000, "sliding_window": 0},
        "figures": [figure.as_json() for figure in figures],
        "bandwidth": [{"threads": 2, "gb_s": 16.0, "low_gb_s": 15.0, "high_gb_s": 17.0, "loop": "plain x1"}],
        "memory": {"peak_rss_bytes": 1_120_000_000, "planned_bytes": 1_106_770_000, "positions": 577},
        "cold": None,
        "sustained": [{"threads": None, "windows": windows}],
        "sensors": {"power": None, "why_no_power": "no sensor", "governor": "ondemand", "max_clock_hz": 2.4e9,
                    "slowed_down": ["temperature limit"], "readings": readings},
    }  # fmt: skip
    return {key: {**value, **changes[key]} if key in changes else value for key, value in made.items()}


# ---- what a board says ----


@pytest.fixture
def model(tmp_path: Path) -> Callable[[str], InstalledModel]:
    """A board with a stand-in for edgellm-rt whose `bench --jsonl` says what is given here, and ends with `status`."""

    def installed(
        said: str | None = None, status: int = 0, errors: str = "", knows_gpus: bool = True
    ) -> InstalledModel:
        remote = FakeRemote(tmp_path / "home")
        remote.home.mkdir()
        made = make_bundle(tmp_path / "tiny")
        if said is not None:
            program = made.path / "edgellm-rt"
            lies = f"sys.stdout.write({said!r}); print({errors!r}, file=sys.stderr); sys.exit({status})"
            text = program.read_text().replace("    options = dict(zip", f"    {lies}\n    options = dict(zip")
            if not knows_gpus:  # as those did that came before: the option is none of theirs
                text = text.replace('"vulkan" in rest', "False").replace('int(rest[rest.index("--threads") + 1])', "2")
            program.write_text(text)
            made = bundle.seal(made.path, {k: v for k, v in made.manifest.items() if k != "files"})
        deploy(made, remote)
        return find_model(remote)

    return installed


def measured(model: InstalledModel, **wanted: Any) -> dict[str, Any]:
    return bench_run.measure(model, load_board("rpi5"), Wanted(**wanted), lambda *_: None)


def test_a_measurement_has_every_sample(model, tmp_path):
    found = measured(model(), depths=(0, 16), threads=(1, 2))
    figures = {figure.key: figure for figure in bench_result.figures_of(found)}
    for threads in (1, 2):
        assert figures["decode", 4, 16, threads].values == (10.0, 8.0)
        assert figures["prefill", 63, 0, threads].values == (100.0,)  # the context of 64 has no room for 128
    assert found["memory"]["peak_rss_bytes"] == 123_456_789
    file = tmp_path / "saved.json"
    bench_result.write(found, file)
    assert bench_result.read(file) == json.loads(json.dumps(found))
    assert bench_show.columns(found)[1]


OPEN = re.search(r"emit\(type=\"open\", (.*?)\)", PROGRAM, re.DOTALL)
assert OPEN
OPENED = json.dumps(eval(f'dict(type="open", {OPEN[1]})'))
START = '{"type":"start","cold":false,"load_ms":3,"prompt":8,"first_token_ms":15}'
END = '{"type":"end","peak_rss_bytes":1}'


@pytest.mark.parametrize(
    ("said", "problem"),
    [
        ("\x1b[31mno JSON", "something unexpected: [31mno JSON"),
        ("[" * 50_000, "something unexpected"),
        ('{"type":7}', "something unexpected"),
        ("x" * 70_000, "says too much"),
        ('{"type":"decode","depth":0,"tokens":4,"at_s":1,"ms":0,"threads":1}', "decode.ms is 0; it must be above 0"),
        ('{"type":"decode","depth":0,"tokens":4,"at_s":1,"ms":NaN,"threads":1}', "decode.ms is nan, no number"),
        ('{"type":"decode","depth":0,"tokens":4,"at_s":1,"threads":1}', "decode.ms is None, no number"),
        (
            '{"type":"decode","depth":0.5,"tokens":4,"at_s":1,"ms":1,"threads":1}',
            "decode.depth is 0.5, no whole number",
        ),
        ('{"type":"open","name":7}', "open lacks one of name"),
        (f"{OPENED}\n{START}", "ended without a result"),
        (END, "ended without a result"),
    ],
)
def test_what_a_board_says_is_checked(model, said, problem):
    with pytest.raises(CommandError) as caught:
        measured(model(said), prompts=(8,), depths=(0,))
    assert problem in str(caught.value)
    assert "\x1b" not in str(caught.value)


GPU_OPENED = json.dumps({**json.loads(OPENED), "gpu": {"name": "Mali-G610", "step_bytes": 50_000_000,
                                                       "kv_bytes_per_token": 10}})  # fmt: skip
DECODED = '{"type":"decode","depth":0,"tokens":4,"at_s":1,"ms":20,"token_ms":5,"threads":2}'


def test_where_a_gpu_computes_the_share_is_of_its_memory(model, tmp_path):
    found = measured(model(f"{START}\n{GPU_OPENED}\n{DECODED}\n{END}\n"), prompts=(8,), depths=(0,))
    (figure,) = (it for it in bench_result.figures_of(found) if it.kind == "decode")
    line = bench_result.roofline(figure, found)
    assert line is not None
    assert line.limit_gb_s == pytest.approx(20)  # the stand-in's processor reads 1 GB/s
    assert line.share == pytest.approx(200 * 50_000_020 / 20e9)
    assert "20.0 GB/s by Mali-G610, which copies 9.0 GB/s to it" in dict(bench_show.facts(found))["memory reads"]
    file = tmp_path / "saved.json"
    bench_result.write(found, file)
    assert bench_result.read(file) == json.loads(json.dumps(found))


def test_where_layers_are_split_the_share_is_of_both_memories(model):
    split = json.dumps({**json.loads(GPU_OPENED), "step_bytes": 60_000_000})
    found = measured(model(f"{START}\n{split}\n{DECODED}\n{END}\n"), prompts=(8,), depths=(0,))
    assert [(it.get("device"), it["threads"]) for it in found["bandwidth"]] == [("vulkan", 0), (None, 2)]
    (figure,) = (it for it in bench_result.figures_of(found) if it.kind == "decode")
    line = bench_result.roofline(figure, found)
    assert line is not None
    seconds = 50_000_020 / 20e9 + 10_000_000 / 1e9  # the stand-in's memories
    assert line.share == pytest.approx(200 * seconds)


GPU_ANSWER: dict[str, Any] = {"device": "vulkan", "gpu": "Mali\x1b[2J", "is_processor": False, "one_memory": True,
                              "gb_s": 20.0, "low_gb_s": 19, "high_gb_s": 21.0, "copy_gb_s": 9.0,
                              "fastest": "x4"}  # fmt: skip


@pytest.mark.parametrize(
    "change",
    [
        {"gb_s": 0},
        {"gb_s": float("nan")},
        {"copy_gb_s": None},
        {"low_gb_s": True},
        {"gpu": 7},
        {"gpu": None},
        {"fastest": ["x4"]},
        {"one_memory": "yes"},
        {"device": "cpu"},
    ],
)
def test_what_a_board_says_of_its_gpus_memory_is_checked(change):
    assert bandwidth.parse_gpu(GPU_ANSWER).gpu == "Mali?[2J".replace("?", "")
    with pytest.raises(ValueError, match="no bandwidth"):
        bandwidth.parse_gpu({**GPU_ANSWER, **change})


def test_nonsense_of_a_gpu_and_older_programs_are_named(model):
    for value in (-1, True, "many", 0.5):
        opened = json.loads(GPU_OPENED)
        opened["gpu"]["step_bytes"] = value
        with pytest.raises(CommandError, match=r"open\.gpu\.step_bytes is .*, no whole number"):
            bench_run._gpu(opened["gpu"], "kitchen")
    older = model(f"{START}\n{GPU_OPENED}\n{DECODED}\n{END}\n", knows_gpus=False)
    with pytest.raises(UnsuitableError, match=r"older than this edgellm.*deploy the model again"):
        measured(older, prompts=(8,), depths=(0,))


def test_an_older_runtime_is_named_as_such(model):
    old = model("", 2, "edgellm-rt: USAGE: bench has no option --jsonl; `edgellm-rt bench --help` lists them")
    with pytest.raises(UnsuitableError, match=r"older than this edgellm.*deploy the model again"):
        measured(old, prompts=(8,), depths=(0,))


# ---- saved results ----


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda d: d.update(kind="other"), "'other', format 1"),
        (lambda d: d.pop("figures"), "it.figures must be a list"),
        (lambda d: d["figures"][2]["values"].append(-1.0), "figures[2].values must be numbers above 0"),
        (lambda d: d["figures"][2].update(kind="x" * 50), "figures[2].kind must be one of prefill"),
        (lambda d: d["figures"][0].update(tokens=True), "figures[0].tokens must be a whole number"),
        (lambda d: d["bandwidth"][0].update(gb_s=0), "bandwidth[0].gb_s must be above 0"),
        (lambda d: d["bandwidth"][0].update(copy_gb_s="fast"), "bandwidth[0].copy_gb_s must be a number"),
        (lambda d: d["model"].update(gpu_step_bytes=-1), "model.gpu_step_bytes must be a whole number"),
        (lambda d: d["sustained"][0]["windows"][3].update(s=0), "windows.s must be above 0"),
        (lambda d: d["sensors"]["readings"][0].update(temp_c="hot"), "temp_c must be a number"),
    ],
)
def test_a_saved_result_is_checked(tmp_path, change, problem):
    file, changed = tmp_path / "result.json", document()
    change(changed)
    file.write_text(json.dumps(changed))
    with pytest.raises(UsageError, match=re.escape(problem)) as caught:
        bench_result.read(file)
    assert str(file) in str(caught.value)


def test_share_of_the_roofline():
    made = document()
    near, far = (f for f in bench_result.figures_of(made) if f.kind == "decode")
    line = bench_result.roofline(near, made)
    assert line is not None
    assert line.bytes_per_token == 1_000_000_000 + 32 * 10_000  # half of what is decoded, on average
    assert line.share == pytest.approx(11 * 1.00032 / 16)
    assert line.limit_tok_s == pytest.approx(16 / 1.00032)
    windowed = {**made, "model": {**made["model"], "sliding_window": 100}}
    deep = bench_result.roofline(far, windowed)
    assert deep is not None
    assert deep.bytes_per_token == 1_000_000_000 + 100 * 10_000
    assert bench_result.roofline(Figure("decode", (1.0,), 64, 0, None, 3), made) is None  # not measured with three


def test_a_processors_bandwidth_is_no_limit_of_a_gpu():
    """Older results have it where a GPU computed."""
    made = document(board={"gpu": "Mali-G610"})
    near = next(f for f in bench_result.figures_of(made) if f.kind == "decode")
    assert bench_result.roofline(near, made) is None
    assert "of the processor" in dict(bench_show.facts(made))["memory reads"]


# ---- comparison ----


def test_rank_test_is_mann_whitneys():
    """Against the definition, and against tables: of 5 and 5 samples apart, 2 of the 252 orders are as extreme."""
    assert bench_compare.rank_test((1, 2, 3, 4, 5), (6, 7, 8, 9, 10)) == pytest.approx(2 / 252)
    assert bench_compare.rank_test((1, 2, 3, 4, 6), (5, 7, 8, 9, 10)) == pytest.approx(4 / 252)
    assert bench_compare.rank_test((1, 1, 1, 1), (1, 1, 1, 1)) == 1  # ties all the way
    assert bench_compare.rank_test((1, 2, 3), (4, 5, 6)) is None  # 2 of 20: could never be below 0.05
    assert bench_compare.rank_test((), (1, 2)) is None
    a, b = tuple(range(40)), tuple(value + 30 for value in range(40))
    assert bench_compare.rank_test(a, b) < 0.001  # drawn, not enumerated
    assert bench_compare.rank_test(a, tuple(value + 0.5 for value in a)) > 0.5


def test_differences_of_nothing_are_found_as_seldom_as_stated():
    """Of every way to split nine different numbers in 4 and 5, at most a twentieth is called a difference."""
    numbers = range(9)
    splits = [(chosen, [n for n in numbers if n not in chosen]) for chosen in itertools.combinations(numbers, 4)]
    called = sum(bench_compare.rank_test(a, b) < bench_compare.LEVEL for a, b in splits)
    assert 0 < called / len(splits) <= bench_compare.LEVEL


def test_correction_is_benjaminis_and_hochbergs():
    """By hand: p × m ÷ rank, made monotone from the largest down."""
    assert bench_compare.correct([0.04, 0.01, 0.03, 0.5]) == pytest.approx([0.16 / 3, 0.04, 0.16 / 3, 0.5])
    assert bench_compare.correct([]) == []


def test_the_same_thing_twice_is_seldom_called_different():
    """300 comparisons of six figures without a difference: verdicts in about a twentieth of them, not in a quarter."""
    draw = random.Random(5)
    wrong = uncorrected = 0
    for _ in range(300):
        ps = []
        for _ in range(6):
            samples = [draw.gauss(100, 10) for _ in range(10)]
            p = bench_compare.rank_test(samples[:5], samples[5:])
            assert p is not None
            ps.append(p)
        uncorrected += min(ps) < bench_compare.LEVEL
        wrong += min(bench_compare.correct(ps)) < bench_compare.LEVEL
    assert uncorrected > 45
    assert wrong < 25


def test_verdicts():
    a, b = document(), document(decode=(20.0, 21.0, 22.0, 19.0, 23.0))
    by_name = {it.figure.name: it for it in bench_compare.differences(a, b)}
    assert by_name["decode at 0"].verdict == "faster"
    assert by_name["decode at 0"].ratio == pytest.approx(21 / 11)
    assert by_name["decode at 0"].low < 21 / 11 < by_name["decode at 0"].high
    assert by_name["start, warm"].verdict == "too few samples"
    same = {it.figure.name: it for it in bench_compare.differences(a, a)}
    assert same["decode at 0"].verdict == "no difference shown"
    slower = {it.figure.name: it for it in bench_compare.differences(b, a)}
    assert slower["decode at 0"].verdict == "slower"


def test_fewer_milliseconds_are_faster():
    def with_times(*values: float) -> dict[str, Any]:
        return {**document(), "figures": [Figure("first_token", values, 128).as_json()]}

    (it,) = bench_compare.differences(with_times(10, 11, 12, 13, 14), with_times(5, 5.5, 6, 6.5, 7))
    assert (it.verdict, it.ratio) == ("faster", pytest.approx(2))


def compare(tmp_path: Path, a: dict[str, Any], b: dict[str, Any], *options: str) -> int:
    for name, made in (("a", a), ("b", b)):
        (tmp_path / f"{name}.json").write_text(json.dumps(made))
    return cli.main(["bench", "--compare", str(tmp_path / "a.json"), str(tmp_path / "b.json"), *options])


def test_different_models_are_compared_only_by_force(tmp_path, capsys):
    other = document(model={"scheme": "w8a8"})
    assert compare(tmp_path, document(), other) == 1
    assert "different schemes, w4a8 and w8a8; --force" in capsys.readouterr().err
    assert compare(tmp_path, document(), other, "--force") == 0
    assert "no difference shown" in capsys.readouterr().out


def test_what_else_differs_is_said(tmp_path, capsys):
    other = document(board={"name": "hall", "cpu": "Cortex-A72"}, sensors={"slowed_down": []})
    other["figures"][2]["threads_used"] = 3
    other["figures"].append(Figure("decode", (1.0,), 64, 0, 4, 4).as_json())
    assert compare(tmp_path, document(), other) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "boards differ: kitchen (Cortex-A76) and hall (Cortex-A72)" in said
    assert "thread counts differ: auto and auto, 4" in said
    assert "decode at 0: the runtime chose 2 threads for A, 3 for B" in said
    assert "A was slowed down while it was measured: temperature limit" in said
    assert "two runs at different times" in said


def test_a_comparison_as_json(tmp_path, capsys):
    assert compare(tmp_path, document(), document(decode=(20.0, 21.0, 22.0, 19.0, 23.0)), "--json") == 0
    answer = json.loads(capsys.readouterr().out)
    decode = next(it for it in answer["figures"] if it["kind"] == "decode")
    assert (decode["verdict"], answer["in_turn"]) == ("faster", False)


def test_merged_runs_keep_every_sample():
    calm = document(decode=(1.0,), sensors={"slowed_down": []})
    merged = bench_result.merge([calm, document(decode=(2.0,), memory={"peak_rss_bytes": 10**10})])
    assert merged["sensors"]["slowed_down"] == ["temperature limit"]
    decode = next(figure for figure in bench_result.figures_of(merged) if figure.kind == "decode")
    assert decode.values == (1.0, 2.0)
    assert merged["memory"]["peak_rss_bytes"] == 10**10


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (("--compare", "a.json", "kitchen"), "not one of each"),
        (("--compare", "a.json", "b.json", "--board", "rpi5"), "do not go with --compare"),
        (("--compare", "a.json", "b.json"), "a.json is not a result"),
        (("--board", "local", "--report", "x.pdf"), "ends in .html or .svg"),
        (("--board", "local", "--report", "nowhere/x.svg"), "no directory nowhere"),
        (("--peer", "llama.cpp", "--json", "x"), "with --peer it prints here"),
        ((), "which board?"),
    ],
)
def test_wrong_usage_is_one_line(argv, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["bench", *argv]) == 1
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


# ---- pictures ----

SVG = "{http://www.w3.org/2000/svg}"


def titles(root: ET.Element) -> list[str]:
    return [element.text or "" for element in root.iter(f"{SVG}title")]


def test_the_page_stands_alone_and_shows_the_numbers(tmp_path):
    file = tmp_path / "report.html"
    hostile = document(model={"name": "<script>alert(1)</script>&"}, board={"cpu": '"><img src=x>'})
    bench_report.write(hostile, file)
    text = file.read_text()
    root = ET.fromstring(text.partition("\n")[2])  # without the doctype
    assert "@import" not in text
    assert "url(" not in text
    assert {element.tag.rpartition("}")[2] for element in root.iter()}.isdisjoint({"script", "link", "img", "iframe"})
    assert all("http" not in value for element in root.iter() for value in element.attrib.values())
    assert "prefers-color-scheme: dark" in text
    said = titles(root)
    assert any(re.search(r"128 tokens: 110 tok/s \(100 to 120\)", title) for title in said)
    assert any(re.search(r"0 positions: 11 tok/s \(10 to 12\), limit of the memory 16", title) for title in said)
    assert any("10 to 19 tok/s" in title for title in said)  # the sustained curve
    assert "slowed down" in said
    cells = [cell.text for cell in root.iter("{http://www.w3.org/1999/xhtml}td")]
    assert "11.0 tok/s" in cells
    assert "69%" in cells


def test_bars_are_as_long_as_their_numbers(tmp_path):
    file = tmp_path / "report.svg"
    bench_report.write(document(), file)
    root = ET.parse(file).getroot()
    height = {}
    for bar in root.iter(f"{SVG}rect"):
        title = bar.find(f"{SVG}title")
        if title is not None and (found := re.search(r"(\d+) positions: ([\d.]+) tok/s", title.text or "")):
            height[int(found[1])] = float(bar.attrib["height"]) / float(found[2])
    assert height[0] == pytest.approx(height[512], rel=0.01)


def test_curves_show_each_second_in_its_place():
    svg = ET.fromstring(plot.curves("t", "u", "s", [plot.Curve("c", ((0, 0), (5, 10), (10, 5)))], zero=True))
    line = svg.find(f"{SVG}polyline")
    assert line is not None
    points = [tuple(map(float, point.split(","))) for point in line.attrib["points"].split()]
    assert points[1][0] - points[0][0] == pytest.approx(points[2][0] - points[1][0])
    assert points[0][1] - points[2][1] == pytest.approx((points[0][1] - points[1][1]) / 2)


@pytest.mark.parametrize("high", [0.003, 1, 7.7, 99, 100, 12345, 1e9])
def test_ticks_are_round_and_cover(high):
    found = plot.ticks(0, high)
    assert found[0] == 0
    assert found[-1] >= high
    assert 2 <= len(found) <= 8
    assert f"{found[1]:e}"[:8] in ("1.000000", "2.000000", "5.000000")  # the step


def test_ticks_of_one_value():
    assert plot.ticks(50, 50)[0] <= 50 <= plot.ticks(50, 50)[-1]


# ---- on this machine, by the command ----


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two models on `local`, in a home of its own; a stand-in runs them."""
    for name in ("HOME", "XDG_STATE_HOME", "XDG_CONFIG_HOME"):
        monkeypatch.setenv(name, str(tmp_path / name))
        (tmp_path / name).mkdir()
    with LocalRemote() as remote:
        for name in ("one", "two"):
            deploy(make_bundle(tmp_path / name), remote, name=name)
    return tmp_path


def test_two_models_are_measured_in_turn(here, capsys):
    lengths = ("--prompt", "8", "--depth", "0", "--repeat", "3")
    assert cli.main(["bench", "--compare", "local:one", "local:two", *lengths, "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    decode = next(it for it in bench_result.figures_of(answer["a"]) if it.kind == "decode")
    assert decode.values == (10.0, 8.0) * 3  # the stand-in says two samples a round
    assert answer["in_turn"]
    assert {it["verdict"] for it in answer["figures"]} == {"no difference shown", "too few samples"}


def test_a_page_and_a_file_in_one_run(here, capsys):
    page, saved = here / "page.svg", here / "saved.json"
    argv = ["bench", "--board", "local", "--model", "one", "--depth", "0", "--report", str(page), "--json", str(saved)]
    assert cli.main(argv) == 0
    assert f"written: {saved}" in capsys.readouterr().out
    assert bench_result.read(saved)["model"]["installed_as"] == "one"
    assert ET.parse(page).getroot().tag == f"{SVG}svg"
