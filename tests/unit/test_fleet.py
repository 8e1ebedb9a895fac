"""A fleet's file, its waves, and what is made of Ansible's events. No Ansible is started here."""

from __future__ import annotations

import argparse
import ast
import json
from pathlib import Path

import pytest
import yaml

from edgellm import ansible_inventory, fleet_plan, fleet_report, rollout_log
from edgellm.ansible_inventory import unsafe, written
from edgellm.boards import Board
from edgellm.bundle import Bundle
from edgellm.errors import BoardError, EdgeError, UsageError
from edgellm.fleet import Fleet, Member, read, share_of, wave_sizes
from edgellm.fleet_gpu import Survey
from edgellm.instances import Instance, add_instance
from edgellm.rollout import BoardState, Rollout

COLLECTION = Path(__file__).resolve().parents[2] / "ansible_collections/edgellm/board"

KITCHENS = """
[rollout]
waves = [1, "50%"]
max_failures = "5%"

[groups.kitchens]
type = "rpi5"
scheme = "w8a8"
model = "./Assistant"
service = true
vars = { room = "kitchen", floor = 1 }

[groups.kitchens.boards]
oven = "pi@oven.local"
fridge = { host = "pi@fridge.local:2222", type = "rpi4", scheme = "w4a8", device = "both", vars = { floor = 2 } }

[groups.halls]
type = "android-arm64"
boards = { phone = "R58M123ABC" }
"""


@pytest.fixture(autouse=True)
def own_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("XDG_CONFIG_HOME", "XDG_STATE_HOME"):
        monkeypatch.setenv(name, str(tmp_path / name))


def file_with(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "fleet.toml"
    path.write_text(text)
    return path


def test_a_fleet_is_read_with_its_groups_in_order(tmp_path: Path) -> None:
    fleet = read(file_with(tmp_path, KITCHENS))
    oven, fridge, phone = fleet.members
    assert (oven.name, oven.type, oven.host, oven.groups) == ("oven", "rpi5", "pi@oven.local", ("kitchens",))
    assert (oven.scheme, oven.service, oven.vars) == ("w8a8", True, {"room": "kitchen", "floor": 1})
    assert oven.model == str(tmp_path / "Assistant")  # from the file's folder
    assert (fridge.type, fridge.scheme, fridge.vars) == ("rpi4", "w4a8", {"room": "kitchen", "floor": 2})
    assert (oven.device, fridge.device) == (None, "both")
    assert (phone.type, phone.host, phone.model, phone.service) == ("android-arm64", "R58M123ABC", None, False)
    assert (fleet.waves, fleet.max_failures) == (("1", "50%"), "5%")
    assert [m.name for m in fleet.selected(["halls", "oven"])] == ["oven", "phone"]
    with pytest.raises(BoardError, match=r"no group or board 'attic'; it has fridge, halls, kitchens, oven, phone"):
        fleet.selected(["attic"])


def test_boards_of_ones_own_are_named_in_a_list(tmp_path: Path) -> None:
    add_instance(Instance.at("left", "rpi4", "pi@left.local:2200"))
    text = '[groups.halls]\nboards = ["left", "right"]\n'
    with pytest.raises(BoardError, match=r"groups\.halls\.boards\.right\.type: is missing; `edgellm boards`"):
        read(file_with(tmp_path, text))
    add_instance(Instance.at("right", "rpi5", "pi@right.local"))
    hosts = [(m.type, m.host) for m in read(file_with(tmp_path, text)).members]
    assert hosts == [("rpi4", "pi@left.local:2200"), ("rpi5", "pi@right.local")]


BOARDS = '[groups.g]\ntype = "rpi5"\n[groups.g.boards]\n'


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("groups = 3", r"groups: must be a table, not int"),
        ("", r"groups: it has no boards; add \[groups\.NAME\.boards\]"),
        ("[group.g]", r"group: unknown; known here: groups, rollout"),
        ('[groups.g]\nhost = "x"', r"groups\.g\.host: unknown; known here: boards, device, model"),
        (BOARDS + "a = 3", r"groups\.g\.boards\.a: must be a table, not int"),
        (BOARDS + 'a = { host = "h", colour = "red" }', r"groups\.g\.boards\.a\.colour: unknown"),
        (BOARDS + 'a = "-oProxyCommand=x"', r"groups\.g\.boards\.a\.host: .* is not an SSH address"),
        (BOARDS + '"a b" = "h"', r"groups\.g\.boards\.a b: cannot be a name"),
        (BOARDS + '"a\\u001b[2J" = "h"', r"groups\.g\.boards\.a\[2J: cannot be a name"),
        (BOARDS + "a = {}", r'groups\.g\.boards\.a\.host: is missing; write a = "user@host"'),
        (BOARDS + 'all = "h"', r"groups\.g\.boards\.all: cannot be a name"),
        (BOARDS + 'a = { host = "h", type = "rpi9" }', r"groups\.g\.boards\.a\.type: there is no board 'rpi9'"),
        (BOARDS + 'a = { host = "h", scheme = "w1" }', r"groups\.g\.boards\.a\.scheme: must be one of w4a8"),
        (
            BOARDS + 'a = { host = "h", device = "gpu" }',
            r"groups\.g\.boards\.a\.device: must be one of cpu, vulkan, both",
        ),
        (BOARDS + 'a = { host = "h", service = 1 }', r"groups\.g\.boards\.a\.service: must be true or false"),
        (BOARDS + 'a = { host = "h", model = [] }', r"groups\.g\.boards\.a\.model: must be a text"),
        (BOARDS + 'a = { host = "h", vars = { ansible_host = "x" } }', r"a\.vars\.ansible_host: cannot be a variable"),
        (BOARDS + 'a = { host = "h", vars = { t = 07:32:00 } }', r"a\.vars\.t: must be a text, a number"),
        (BOARDS + 'g = "h"', r"groups\.g: is the name of a board, too"),
        (BOARDS + 'a = "h"\n[groups.k]\ntype = "rpi5"\nboards = { a = "h" }', r"groups\.k\.boards\.a: is in groups\.g"),
        ('[groups.g]\ntype = "rpi5"\nboards = [1]', r"groups\.g\.boards\[0\]: must be the name of a board"),
        ("[rollout]\nwaves = []\n" + BOARDS + 'a = "h"', r"rollout\.waves: must be a list such as"),
        ('[rollout]\nwaves = ["x"]\n' + BOARDS + 'a = "h"', r"rollout\.waves\[0\]: must be a number of boards"),
        ("[rollout]\nmax_failures = true\n" + BOARDS + 'a = "h"', r"rollout\.max_failures: must be a number of boards"),
        ('[rollout]\nmax_failures = "101%"\n' + BOARDS + 'a = "h"', r"rollout\.max_failures: must be a number"),
        ("[groups", r"not valid TOML"),
    ],
)
def test_a_wrong_file_is_refused_by_field(tmp_path: Path, text: str, said: str) -> None:
    path = file_with(tmp_path, text)
    with pytest.raises(BoardError, match=said) as caught:
        read(path)
    assert str(caught.value).startswith(f"{path}: ")


def test_waves_and_budgets_are_counted_as_ansible_counts() -> None:
    assert wave_sizes(("1", "10%", "25%"), 200) == [1, 20, 50, 50, 50, 29]
    assert wave_sizes(("30%",), 3) == [1, 1, 1]  # a share of nothing is one board
    assert wave_sizes(("5",), 3) == [3]
    assert (share_of("10%", 20), share_of("10%", 9), share_of("3", 9)) == (2, 0, 3)
    for text in ("", "-1", "1.5", "101%", "%", "ten"):
        with pytest.raises(UsageError):
            share_of(text, 10)


@pytest.mark.parametrize("n_boards", [1, 2, 5, 20, 199])
@pytest.mark.parametrize("max_failures", [0, 1, 2, 20])
def test_no_wave_can_fail_as_a_whole_within_the_budget(n_boards: int, max_failures: int) -> None:
    """Ansible stops after a wave in which all failed; only the canaries' wave, and the last one, may be so small."""
    sizes = fleet_plan.sizes_of_waves(None, n_boards, 1, max_failures)
    assert sum(sizes) == n_boards
    assert all(size > max_failures for size in sizes[1:-1])


def test_a_model_is_compiled_once_for_each_type_and_each_type_has_a_canary(tmp_path: Path) -> None:
    members = [Member(f"a{n}", "rpi5", "h", ("g",), "Model") for n in range(3)]
    members += [Member(f"b{n}", "rpi4", "h", ("g",), "Model", scheme="w8a8", device="both") for n in range(3)]
    asked = []

    def make(model: str, board: Board | None, *chosen: str | None) -> Bundle:
        asked.append((model, board.id if board else None, *chosen))
        return Bundle(tmp_path / str(len(asked)), {}, "0" * 64, ())

    def planned(members: list[Member], *said: str | None, is_ansible: bool = False) -> fleet_plan.Plan:
        args = argparse.Namespace(**dict(zip(("model", "scheme", "device"), said, strict=True)))
        wished = fleet_plan.wishes(args, Fleet(tmp_path, tuple(members), is_ansible), members)
        return fleet_plan.planned(wished, Survey(), make)

    plan = planned(members, None, None, None)
    assert asked == [("Model", "rpi5", None, None), ("Model", "rpi4", "w8a8", "both")]
    assert [member.name for member in plan.members] == ["a0", "b0", "a1", "a2", "b1", "b2"]
    assert plan.n_canaries == 2
    assert plan.bundles["b2"].path == tmp_path / "2"
    # The command line has the last word.
    planned(members[3:], "Other", "f16", "cpu")
    assert asked[2:] == [("Other", "rpi4", "f16", "cpu")]
    # What a group says of compiling does not count for a bundle.
    planned(members, "made.edgellm", None, None)
    assert asked[3:] == [("made.edgellm", None, None, None)]
    for model, said in ((None, "which model for c"), ("Model", "c: edgellm_board is missing")):
        with pytest.raises(EdgeError, match=said):
            planned([Member("c")], model, None, None, is_ansible=True)


def rollout(*boards: BoardState, max_failures: int = 1, waves: tuple[int, ...] = (1, 2)) -> Rollout:
    return Rollout({board.name: board for board in boards}, list(waves), max_failures, Path("log"))


def test_events_of_the_log_become_states(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = tmp_path / "log"
    log.touch()
    monkeypatch.setenv(rollout_log.VARIABLE, str(log))
    seen = rollout(BoardState("a"), BoardState("b"), BoardState("c"))
    follower = rollout_log.Follower(log)
    rollout_log.write("begin", board="a", wave=1)
    reporter = rollout_log.BoardReporter("a")
    reporter.stage("verifying\x1b[2J: 3 %")
    reporter.transfer_begins(100)
    reporter.transferred(40)
    reporter.transfer_ends()
    rollout_log.write("ok", board="a", result={"changed": True, "in_use": "0" * 16, "proof": {"decode_tok_s": 9.5}})
    rollout_log.write("failed", board="b", result={"msg": "b (pi@b): no\nspace\x1b[31m"})
    with log.open("ab") as file:  # what makes no sense, and half a line
        file.write(b'nonsense\n[1]\n{"event": "ok"}\n{"event": "ok", "board": "d"}\n{"event": "be')
    for event in follower.events():
        seen.apply(event)
    with log.open("ab") as file:
        file.write(b'gin", "board": "c", "wave": "x"}\n')
    for event in follower.events():
        seen.apply(event)
    a, b, c = seen.boards.values()
    assert (a.state, a.wave, a.sent_bytes, a.total_bytes, a.in_use, a.tok_s) == ("changed", 1, 40, 100, "0" * 16, 9.5)
    assert (b.state, b.text) == ("failed", "no space[31m")
    assert (c.state, c.wave) == ("working", 0)
    follower.close()


def test_each_run_of_a_process_has_a_record_of_its_own_and_the_newest_is_the_last(tmp_path: Path) -> None:
    """A deployment to GPUs asks first, and then rolls out, perhaps in the same second."""
    made = [rollout_log.new_path() for _ in range(5)]
    assert sorted(set(made)) == made


def test_without_the_variable_nothing_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(rollout_log.VARIABLE, raising=False)
    rollout_log.write("ok", board="a")


def test_exit_codes_tell_how_it_ended() -> None:
    done, failed, waiting = (BoardState(name, state=name) for name in ("changed", "failed", "waiting"))
    assert fleet_report.exit_code(rollout(done)) == 0
    assert fleet_report.exit_code(rollout(done, failed)) == 3
    assert fleet_report.exit_code(rollout(done, failed, waiting)) == 4


def test_ansibles_groups_and_variables_are_taken_over_and_checked(tmp_path: Path) -> None:
    document = {
        "all": {"children": ["ungrouped", "kitchens"]},
        "kitchens": {"children": ["old"], "hosts": ["oven"]},
        "old": {"hosts": ["fridge", "oven"]},
        "_meta": {"hostvars": {"oven": {"edgellm_board": "rpi5", "edgellm_device": "both", "edgellm_service": True}}},
    }
    oven, fridge = ansible_inventory._members(document, tmp_path)
    assert (oven.name, oven.type, oven.service, oven.groups) == ("oven", "rpi5", True, ("kitchens", "old"))
    assert (fridge.name, fridge.type, fridge.groups) == ("fridge", None, ("kitchens", "old"))
    assert (oven.device, fridge.device) == ("both", None)
    for key, value, said in (
        ("edgellm_service", "yes", "must be true"),
        ("edgellm_board", 5, "must be"),
        ("edgellm_model", "{{ m }}", "has a"),
        ("edgellm_device", "gpu", "must be one of cpu, vulkan, both"),
    ):
        document["_meta"] = {"hostvars": {"oven": {key: value}}}
        with pytest.raises(BoardError, match=f"oven: {key}: {said}"):
            ansible_inventory._members(document, tmp_path)
    with pytest.raises(BoardError, match="child of itself"):
        ansible_inventory._members({"all": {"children": ["a"]}, "a": {"children": ["a"]}}, tmp_path)
    with pytest.raises(BoardError, match="has no hosts"):
        ansible_inventory._members({"all": {}}, tmp_path)


def test_nothing_that_comes_from_a_file_is_a_template() -> None:
    hostile = Member("a", "rpi5", "h", ("g",), vars={"x": "{{ 1 }}", "y": ["{% x %}", {"z": "{{"}], "plain": "text"})
    host = written([hostile])["all"]["children"]["g"]["hosts"]["a"]
    assert host["x"] == {"__ansible_unsafe": "{{ 1 }}"}
    assert host["y"] == [{"__ansible_unsafe": "{% x %}"}, {"z": {"__ansible_unsafe": "{{"}}]
    assert (host["plain"], host["edgellm_host"]) == ("text", "h")
    assert unsafe(3) == 3


def test_a_board_or_a_fleet_and_not_both(tmp_path: Path) -> None:
    from edgellm.cli import main

    for argv in (
        ["deploy", "model"],
        ["deploy", "model", "--board", "rpi5", "--fleet", "x.toml"],
        ["deploy", "model", "--board", "rpi5", "--max-failures", "3"],
        ["rollback", "--fleet", str(file_with(tmp_path, KITCHENS))],
        ["rollback", "--fleet", str(file_with(tmp_path, KITCHENS)), "--from", "xyz"],
        ["status"],
    ):
        assert main(argv) == 1, argv


def test_the_collection_documents_what_it_takes() -> None:
    """Options of every module: documented, and checked by its action plug-in."""
    source = ast.parse((COLLECTION / "plugins/plugin_utils/board.py").read_text())
    spec = next(
        ast.literal_eval(node.value)
        for node in source.body
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.target.id == "SPEC"
    )
    modules = {path.stem: path for path in (COLLECTION / "plugins/modules").glob("*.py")}
    assert set(modules) == set(spec) == {path.stem for path in (COLLECTION / "plugins/action").glob("*.py")}
    for name, path in modules.items():
        texts = {
            node.targets[0].id: yaml.safe_load(ast.literal_eval(node.value))
            for node in ast.parse(path.read_text()).body
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
        }
        documented = texts["DOCUMENTATION"].get("options", {})
        assert set(documented) == set(spec[name]), name
        for option, entry in spec[name].items():
            wanted = {key: value for key, value in documented[option].items() if key != "description"}
            assert {"default": False, **entry} == {"default": False, **wanted}, (name, option)
        assert texts["RETURN"], name
        assert any(f"edgellm.board.{name}" in json.dumps(example) for example in texts["EXAMPLES"]), name
    runtime = yaml.safe_load((COLLECTION / "meta/runtime.yml").read_text())
    assert set(runtime["action_groups"]["board"]) == set(spec)


def test_the_collection_has_the_projects_version() -> None:
    import edgellm

    assert yaml.safe_load((COLLECTION / "galaxy.yml").read_text())["version"] == edgellm.__version__


def test_another_fleets_file_needs_ansible_to_read_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "hosts.ini"
    path.write_text("[k]\nboard00\n")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"pip install 'edgellm\[fleet\]'"):
        read(path)
