"""Board manifests: every one loads, and what is wrong with one is said by file, key and reason."""

import pytest

from crosscompile.data import data_path
from crosscompile.spirv.capabilities import MATRIX_UNITS
from edgellm.boards import Board, find_board, find_type, list_boards, load_board
from edgellm.errors import BoardError
from edgellm.instances import Instance, add_instance, instances_path, read_instances, remove_instance
from edgellm.local import describe

GOOD = """
name = "Test"
[target]
arch = "aarch64"
cpu = "2× Something"
n_cores = 2
cpu_features = ["asimd"]
[memory]
ram_bytes = 1024
"""


@pytest.fixture(autouse=True)
def config(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))


@pytest.mark.parametrize(
    ("board_id", "tier"),
    [
        ("rpi5", "dotprod"),
        ("rpi4", "armv8-neon"),
        ("rpi3", "armv8-neon"),
        ("rpi-zero-2w", "armv8-neon"),
        ("rpi2", "armv7-neon"),
        ("orangepi5", "dotprod"),
        ("rock5b", "dotprod"),
        ("odroid-n2", "armv8-neon"),
        ("radxa-zero", "armv8-neon"),
        ("jetson-orin-nano", "dotprod"),
        ("n100", "avx-vnni"),
        ("android-arm64", "armv8-neon"),
        ("virtual-rpi5", "dotprod"),
        ("virtual-rpi4", "armv8-neon"),
        ("virtual-rpi2", "armv7-neon"),
        ("virtual-android", "armv8-neon"),
    ],
)
def test_manifest_gives_its_tier(board_id, tier):
    assert load_board(board_id).target().tier.name == tier


def test_every_manifest_loads_and_names_its_sources():
    boards = list_boards()
    assert {board.id for board in boards} == {path.stem for path in data_path("boards").glob("*.toml")}
    for path in data_path("boards").glob("*.toml"):
        assert "#" in path.read_text(), f"{path} gives no source"


def test_virtual_board_is_like_the_board_it_stands_for():
    real, virtual = load_board("rpi5"), load_board("virtual-rpi5")
    assert virtual.virtual == "rpi5"
    assert real.virtual is None
    assert (virtual.target_section, virtual.memory) == (real.target_section, real.memory)


def test_local_is_this_machine():
    board = load_board("local")
    assert board.n_cores > 0
    assert board.memory_bytes > 2**20


def test_describe_keeps_only_features_that_every_core_has():
    cpuinfo = "processor: 0\nFeatures\t: fp asimd asimddp\n\nprocessor: 1\nFeatures\t: fp asimd\n"
    found = describe(cpuinfo, "MemTotal:   2048 kB\n", "aarch64")
    assert found["target"]["cpu_features"] == ["asimd", "fp"]
    assert found["memory"]["ram_bytes"] == 2048 * 1024


@pytest.mark.parametrize(
    ("old", "new", "key", "reason"),
    [
        ("n_cores = 2", 'n_cores = "2"', "target.n_cores", "must be int, not str"),
        ("n_cores = 2", "n_cores = true", "target.n_cores", "must be int, not bool"),
        ("n_cores = 2", "n_cores = 0", "target.n_cores", "must be positive"),
        ("n_cores = 2", "n_core = 2", "target.n_core", "unknown"),
        ("n_cores = 2\n", "", "target.n_cores", "missing"),
        ('["asimd"]', '"asimd"', "target.cpu_features", "must be a list"),
        ('["asimd"]', "[1]", "target.cpu_features[0]", "must be str"),
        ("aarch64", "sparc", "target.arch", "must be one of"),
        ("[memory]", "[memry]", "memry", "unknown"),
        ("[memory]\nram_bytes = 1024", "", "memory", "missing"),
        ("ram_bytes = 1024", "ram_bytes = 1024\npage_bytes = 5", "memory.page_bytes", "4096"),
        ("ram_bytes = 1024", "ram_bytes = 1024\nram_options_bytes = [1]", "memory.ram_options_bytes", "contain"),
        ('name = "Test"', "", "name", "must be a text"),
        ('name = "Test"', 'name = "Test"\nmemory = 3', "", "valid TOML"),
        ('name = "Test"', 'name = "Test"\nthermal = 3', "thermal", "must be a table"),
        ("n_cores = 2", "n_cores = 2\nandroid_api = 24", "target.android_api", 'belongs to os = "android"'),
        ("n_cores = 2", 'n_cores = 2\nos = "android"', "target.android_api", "21 or more"),
        ("[memory]", '[virtual]\nlike = "x"\n[memory]', "target", "unknown"),
        *(
            ("[memory]", f'[vulkan]\ndevice = "GPU"\nsubgroup = {value}\n[memory]', "vulkan.subgroup", reason)
            for value, reason in (
                ("48", "must be one of 8, 16, 32, 64, 128; leave it out where the driver has no matrix units"),
                ("-32", "must be one of"),
                ("256", "must be one of"),
                ('"32"', "must be int, not str"),
                ("true", "must be int, not bool"),
            )
        ),
    ],
)
def test_wrong_manifest_is_refused_with_file_key_and_reason(tmp_path, old, new, key, reason):
    assert old in GOOD
    path = tmp_path / "odd.toml"
    path.write_text(GOOD.replace(old, new))
    with pytest.raises(BoardError) as caught:
        load_board("odd", tmp_path)
    message = str(caught.value)
    assert str(path) in message
    assert key in message
    assert reason in message


@pytest.mark.parametrize("subgroup", [0, 8, 32, 128])
def test_matrix_units_follow_from_the_subgroup(tmp_path, subgroup):
    table = f'[vulkan]\ndevice = "GPU"\nshared_bytes = 49152\nsubgroup = {subgroup}\n'
    (tmp_path / "large.toml").write_text(GOOD + table)
    gpu = load_board("large", tmp_path).gpu_target().gpu
    assert gpu is not None
    assert (gpu.subgroup, gpu.matrix, gpu.shared_bytes) == (subgroup, 16, 49152)
    assert gpu.has(*MATRIX_UNITS) == (subgroup > 0)


def test_virtual_board_must_stand_for_hardware(tmp_path):
    (tmp_path / "real.toml").write_text(GOOD)
    (tmp_path / "one.toml").write_text('name = "One"\n[virtual]\nlike = "real"\n')
    (tmp_path / "two.toml").write_text('name = "Two"\n[virtual]\nlike = "one"\n')
    assert load_board("one", tmp_path).n_cores == 2
    with pytest.raises(BoardError, match="itself virtual"):
        load_board("two", tmp_path)


def test_unknown_board_lists_the_known_ones():
    with pytest.raises(BoardError, match="rpi5"):
        load_board("rpi55")


def test_instance_is_found_by_name_and_by_type():
    add_instance(Instance.at("kitchen", "rpi5", "pi@kitchen.local:2222"))
    for name in ("kitchen", "rpi5"):
        board = find_board(name)
        assert (board.id, board.host, board.port, board.label) == ("rpi5", "pi@kitchen.local", 2222, "kitchen")
    assert find_board("rpi4").host is None
    assert find_type("kitchen").id == "rpi5"


def test_host_beats_instances():
    add_instance(Instance.at("kitchen", "rpi5", "pi@kitchen.local"))
    board = find_board("rpi5", host="me@other:23")
    assert (board.host, board.port, board.label) == ("me@other", 23, "rpi5")


def test_ambiguous_type_names_the_candidates_or_asks():
    add_instance(Instance.at("kitchen", "rpi5", "pi@kitchen.local"))
    add_instance(Instance.at("hall", "rpi5", "pi@hall.local"))
    with pytest.raises(BoardError, match=r"hall \(pi@hall.local\)") as caught:
        find_board("rpi5")
    assert "kitchen (pi@kitchen.local)" in str(caught.value)

    def choose(candidates: list[Board]) -> Board:
        return next(board for board in candidates if board.instance == "hall")

    assert find_board("rpi5", choose=choose).host == "pi@hall.local"


def test_taken_and_impossible_names_are_refused():
    add_instance(Instance.at("kitchen", "rpi5", "pi@a"))
    with pytest.raises(BoardError, match="already rpi5 at pi@a"):
        add_instance(Instance.at("kitchen", "rpi4", "pi@b"))
    add_instance(Instance.at("kitchen", "rpi4", "pi@b"), replace=True)
    assert read_instances()["kitchen"].type == "rpi4"
    with pytest.raises(BoardError, match="cannot be a board's name"):
        add_instance(Instance.at("the kitchen", "rpi5", "pi@a"))


def test_removed_instance_is_gone_and_no_temporary_file_stays():
    add_instance(Instance.at("a", "rpi5", "pi@a"))
    add_instance(Instance.at("b", "rpi5", "pi@[fe80::1]:2200"))
    assert remove_instance("a").host == "pi@a"
    assert list(read_instances()) == ["b"]
    assert read_instances()["b"].host == "pi@fe80::1"
    with pytest.raises(BoardError, match="you have: b"):
        remove_instance("a")
    assert [path.name for path in instances_path().parent.iterdir()] == ["boards.toml"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[a\n", "not valid TOML"),
        ('a = "x"', "must be a table"),
        ('[a]\ntype = "rpi5"\nhost = 3', "must be texts"),
        ('[a]\ntype = "rpi5"\nhost = "h"\nport = 70000', "from 1 to 65535"),
        ('[a]\ntype = "rpi5"\nhost = "h"\ncolour = 1', "with type, host"),
    ],
)
def test_damaged_instances_are_refused_by_file_and_reason(text, reason):
    instances_path().parent.mkdir(parents=True)
    instances_path().write_text(text)
    with pytest.raises(BoardError, match=reason) as caught:
        read_instances()
    assert str(instances_path()) in str(caught.value)
