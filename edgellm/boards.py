"""Board manifests: boards/<id>.toml read, checked and turned into a frozen Board.

A manifest is data. Every section is named after the code that reads it, every key carries its unit, and anything
unknown or of the wrong type is refused with the file, the key and the reason.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field, fields, replace
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from crosscompile.data import data_path
from crosscompile.gpu.schedules import SCHEDULES
from crosscompile.spirv.capabilities import CAPABILITIES, FLOOR, MATRIX_UNITS, NARROW, Gpu
from crosscompile.target import Target, gpu_tier, target_for
from edgellm import local_gpu
from edgellm.errors import BoardError
from edgellm.gpu_facts import FOUND, SUBGROUPS, VulkanSection
from edgellm.instances import Instance, read_instances
from edgellm.remembered import recall_gpu, state_path

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ARCHES = ("aarch64", "armv7", "x86_64")
SYSTEMS = ("linux", "android")


@dataclass(frozen=True)
class TargetSection:
    """What kernels are compiled for.

    arch          aarch64, armv7 or x86_64
    os            linux or android
    cpu           the cores by name, for people
    cpu_features  as Linux prints them in /proc/cpuinfo; only those that every core has
    android_api   of Android alone: the oldest API level that programs which are linked with its libc must run on
    core          the fast cores' name, for predictions; clock_hz: their highest usual clock
    """

    arch: str
    cpu: str
    cpu_features: tuple[str, ...]
    n_cores: int
    os: str = "linux"
    android_api: int | None = None
    n_fast_cores: int | None = None
    core: str | None = None
    clock_hz: int | None = None


@dataclass(frozen=True)
class MemorySection:
    """How much memory there is and how fast.

    ram_bytes              of a usual variant, for estimates; deployment asks the board itself
    ram_options_bytes      every variant
    bandwidth_bytes_per_s  theoretical peak: transfers per second times bus width
    read_bytes_per_s       what programs were seen to read with so many threads as read_threads says, in the same order
    page_bytes             page size of the usual kernel
    """

    ram_bytes: int
    ram_options_bytes: tuple[int, ...] = ()
    bandwidth_bytes_per_s: int | None = None
    read_threads: tuple[int, ...] = ()
    read_bytes_per_s: tuple[int, ...] = ()
    page_bytes: int = 4096


@dataclass(frozen=True)
class RuntimeSection:
    """Where the runtime starts before it has measured the board itself."""

    threads_decode: int | None = None
    threads_prefill: int | None = None


@dataclass(frozen=True)
class ThermalSection:
    """Temperature at which the firmware starts to slow the clock down, in degrees Celsius."""

    throttle_c: int


@dataclass(frozen=True)
class VirtualSection:
    """A board that runs on this machine and behaves like another.

    like      the board it stands for; all other sections are that board's
    qemu      the emulator's program name; empty: the machine's own processor runs it
    qemu_cpu  the emulated processor
    gpu       a program plays its GPU: Mesa's lavapipe
    """

    like: str
    qemu: str = ""
    qemu_cpu: str = ""
    gpu: bool = False


@dataclass(frozen=True)
class Board:
    """A type of board (from boards/), or one instance of it (from `edgellm boards add`).

    host  "user@host" or "adb[:SERIAL]" of an instance; None for a type. port and name belong to the instance too.
    """

    id: str
    name: str
    target_section: TargetSection
    memory: MemorySection
    runtime: RuntimeSection = field(default_factory=RuntimeSection)
    vulkan: VulkanSection | None = None
    thermal: ThermalSection | None = None
    virtual_section: VirtualSection | None = None
    instance: str | None = None
    host: str | None = None
    port: int = 22

    @property
    def label(self) -> str:
        """What messages call the board: the instance's name, or the type's id."""
        return self.instance or self.id

    @property
    def whereabouts(self) -> str:
        """Which board its instance's name means."""
        return f"{self.id} {self.host} {self.port}"

    @property
    def arch(self) -> str:
        return self.target_section.arch

    @property
    def os(self) -> str:
        return self.target_section.os

    @property
    def cpu(self) -> str:
        return self.target_section.cpu

    @property
    def cpu_features(self) -> tuple[str, ...]:
        return self.target_section.cpu_features

    @property
    def n_cores(self) -> int:
        return self.target_section.n_cores

    @property
    def memory_bytes(self) -> int:
        return self.memory.ram_bytes

    @property
    def virtual(self) -> str | None:
        """The id of the board that a virtual one stands for; None for hardware."""
        return self.virtual_section.like if self.virtual_section else None

    def target(self) -> Target:
        """What crosscompile needs to know of this board. Raises TargetError if no tier fits its CPU."""
        return target_for(self.arch, self.cpu_features, self.os, self.target_section.android_api)

    def gpu(self) -> VulkanSection:
        """Its GPU: as the manifest or the board's driver says; of `local`, its driver is asked now.

        Raises BoardError if none is known.
        """
        section = self.vulkan
        if section is None:
            raise BoardError(
                f"{self.label} has no GPU that is known: its manifest has no [vulkan] section; use --device cpu"
            )
        unknown = sorted(set(section.capabilities) - set(CAPABILITIES))
        if unknown:
            raise BoardError(f"{self.id}.toml: vulkan.capabilities: {', '.join(unknown)} is not known here")
        if section.schedule == FOUND:
            return local_gpu.found(section, self._gpu_half().on_gpu(Gpu()))
        if section.schedule not in SCHEDULES:
            raise BoardError(f"{self.id}.toml: vulkan.schedule: {section.schedule} is none of {', '.join(SCHEDULES)}")
        return section

    def gpu_target(self) -> Target:
        """What crosscompile needs to know where the GPU computes. Raises BoardError if none is known."""
        section = self.gpu()
        more = (*section.capabilities, *(MATRIX_UNITS if section.subgroup else ()))
        without = [NARROW[size] for size, has in ((2, section.halves), (1, section.bytes)) if not has]
        gpu = Gpu(
            capabilities=tuple(dict.fromkeys(name for name in (*FLOOR, *more) if name not in without)),
            invocations=section.invocations,
            shared_bytes=section.shared_bytes,
            buffers=section.storage_buffers,
            binding_bytes=section.binding_bytes,
            schedule=section.schedule,
            subgroup=section.subgroup,
            mixed=section.mixed,
        )
        return self._gpu_half().on_gpu(gpu)

    def _gpu_half(self) -> Target:
        """The processor beside a GPU."""
        return Target(self.arch, self.os, gpu_tier(self.arch), self.target_section.android_api)


_SECTIONS: dict[str, tuple[str, type[Any]]] = {
    "target": ("target_section", TargetSection),
    "memory": ("memory", MemorySection),
    "runtime": ("runtime", RuntimeSection),
    "vulkan": ("vulkan", VulkanSection),
    "thermal": ("thermal", ThermalSection),
    "virtual": ("virtual_section", VirtualSection),
}
"""Section of a manifest: (field of Board, its type)."""

Chooser = Callable[[list["Board"]], "Board"]
"""Asks which of several instances is meant."""

LOCAL = "local"
"""The one type whose facts are read from this machine instead of a file's numbers."""


def list_boards(directory: Path | None = None) -> list[Board]:
    """Every type of board, sorted by id. Raises BoardError on the first manifest that is wrong."""
    return [load_board(path.stem, directory) for path in sorted(_manifests(directory))]


def load_board(board_id: str, directory: Path | None = None) -> Board:
    """The type of board called `board_id`.

    directory: where the manifests lie; the distribution's own by default.
    Raises BoardError if there is none of that name, or its manifest is wrong.
    """
    paths = {path.stem: path for path in _manifests(directory)}
    if board_id not in paths:
        raise BoardError(f"there is no board {board_id!r}; `edgellm boards` lists them: {', '.join(sorted(paths))}")
    path = paths[board_id]
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BoardError(f"{path}: not valid TOML: {error}") from error
    if "virtual" in document:
        return _virtual(document, path, directory)
    if board_id == LOCAL:
        from edgellm.local import describe  # reads /proc, which no other board needs

        document = {**describe(), **document}
    return _board(document, path)


def find_type(name: str) -> Board:
    """The type of board that `name` means, a type's id or an instance's name; for whatever needs no address."""
    instance = read_instances().get(name)
    return load_board(instance.type if instance else name)


def find_board(name: str, host: str | None = None, choose: Chooser | None = None) -> Board:
    """The board that `--board NAME [--host HOST]` means.

    name: an instance's name, or a type's id; the only instance of a type is meant by the type too.
    host: "user@host[:port]" or "adb[:SERIAL]"; then no instance is looked for.
    choose: asked when a type has several instances; by default the person at the terminal, if there is one.
    Raises BoardError if nothing has that name, or several instances do and nobody can be asked.
    """
    instances = read_instances()
    if host is not None:
        kind = find_type(name)
        return replace(_at(kind, Instance.at(name, name, host, kind.os == "android")), instance=None)
    if name in instances:
        return _at(load_board(instances[name].type), instances[name])
    board = load_board(name)
    candidates = [_at(board, entry) for entry in instances.values() if entry.type == name]
    if len(candidates) < 2:
        return candidates[0] if candidates else board
    if choose is None:
        from edgellm.boards_cli import chooser

        choose = chooser()
    if choose is None:
        raise BoardError(
            f"{name} is {len(candidates)} boards: "
            + ", ".join(f"{each.instance} ({each.host})" for each in candidates)
            + "; name one of them with --board"
        )
    return choose(candidates)


def _at(board: Board, instance: Instance) -> Board:
    """The board at an address, with what its GPU's driver said when it was asked last (edgellm.board_gpu)."""
    board = replace(board, instance=instance.name, host=instance.host, port=instance.port)
    said = recall_gpu(instance.name, board.whereabouts) if board.vulkan is not None else None
    if board.vulkan is None or said is None:
        return board
    known = {key: value for key, value in said.items() if value is not None}
    try:
        section = _section(known, VulkanSection, state_path(), f"{instance.name}.gpu")
        asked = replace(board, vulkan=replace(section, times_slower=board.vulkan.times_slower))
        _check(asked, state_path())
        asked.gpu()
    except BoardError:  # of another version, or edited; the next deploy asks again
        return board
    return asked


def _manifests(directory: Path | None) -> list[Path]:
    return list((directory or data_path("boards")).glob("*.toml"))


def _virtual(document: Mapping[str, Any], path: Path, directory: Path | None) -> Board:
    name = _name(document, path, allowed={"name", "virtual"})
    section = _section(document["virtual"], VirtualSection, path, "virtual")
    like = load_board(section.like, directory)
    if like.virtual:
        raise BoardError(f"{path}: virtual.like: {section.like} is itself virtual; name real hardware")
    if bool(section.qemu) != bool(section.qemu_cpu):
        raise BoardError(f"{path}: virtual: qemu and qemu_cpu belong together; give both or neither")
    return replace(like, id=path.stem, name=name, virtual_section=section)


def _board(document: Mapping[str, Any], path: Path) -> Board:
    values: dict[str, Any] = {"id": path.stem, "name": _name(document, path, allowed={"name", *_SECTIONS})}
    for key, (attribute, kind) in _SECTIONS.items():
        if key in document:
            values[attribute] = _section(document[key], kind, path, key)
    for key in ("target", "memory"):
        if key not in document:
            raise BoardError(f"{path}: section [{key}] is missing")
    board = Board(**values)
    _check(board, path)
    return board


def _name(document: Mapping[str, Any], path: Path, allowed: set[str]) -> str:
    for key in document:
        if key not in allowed:
            raise BoardError(f"{path}: {key}: unknown; known here: {', '.join(sorted(allowed))}")
    name = document.get("name")
    if not isinstance(name, str) or not name:
        raise BoardError(f"{path}: name: must be a text that is not empty")
    return name


def _check(board: Board, path: Path) -> None:
    target, memory = board.target_section, board.memory
    rules = (
        ("target.arch", target.arch in ARCHES, f"must be one of {', '.join(ARCHES)}"),
        ("target.os", target.os in SYSTEMS, f"must be one of {', '.join(SYSTEMS)}"),
        (
            "target.android_api",
            (target.android_api is not None) == (target.os == "android") and (target.android_api or 21) >= 21,
            'belongs to os = "android", and is 21 or more',
        ),
        ("target.n_cores", target.n_cores > 0, "must be positive"),
        ("target.n_fast_cores", 0 < (target.n_fast_cores or 1) <= target.n_cores, "must be from 1 to n_cores"),
        ("memory.ram_bytes", memory.ram_bytes > 0, "must be positive"),
        (
            "memory.ram_options_bytes",
            not memory.ram_options_bytes or memory.ram_bytes in memory.ram_options_bytes,
            "must contain ram_bytes",
        ),
        (
            "memory.read_bytes_per_s",
            len(memory.read_bytes_per_s) == len(memory.read_threads) and all(n > 0 for n in memory.read_bytes_per_s),
            "must have a positive number for each of read_threads",
        ),
        (
            "memory.read_threads",
            list(memory.read_threads) == sorted({n for n in memory.read_threads if n > 0}),
            "must be positive and ascend",
        ),
        ("target.clock_hz", (target.clock_hz or 1) > 0, "must be positive"),
        ("memory.page_bytes", memory.page_bytes in (4096, 16384, 65536), "must be 4096, 16384 or 65536"),
        (
            "vulkan",
            board.vulkan is None
            or min(
                board.vulkan.invocations,
                board.vulkan.shared_bytes,
                board.vulkan.storage_buffers,
                board.vulkan.binding_bytes,
            )
            > 0,
            "limits must be positive",
        ),
        (
            "vulkan.subgroup",
            board.vulkan is None or board.vulkan.subgroup in (0, *SUBGROUPS),
            f"must be one of {', '.join(map(str, SUBGROUPS))}; leave it out where the driver has no matrix units",
        ),
        ("runtime.threads_decode", 0 < (board.runtime.threads_decode or 1) <= target.n_cores, "must be 1 to n_cores"),
        ("runtime.threads_prefill", 0 < (board.runtime.threads_prefill or 1) <= target.n_cores, "must be 1 to n_cores"),
    )
    for key, holds, reason in rules:
        if not holds:
            raise BoardError(f"{path}: {key}: {reason}")


Section = TypeVar("Section")


def _section(table: Any, kind: type[Section], path: Path, section: str) -> Section:
    """Build a section's dataclass from its TOML table, refusing what the dataclass does not name."""
    if not isinstance(table, Mapping):
        raise BoardError(f"{path}: {section}: must be a table, [{section}]")
    types = get_type_hints(kind)
    for key in table:
        if key not in types:
            raise BoardError(f"{path}: {section}.{key}: unknown; known here: {', '.join(types)}")
    values: dict[str, Any] = {}
    for member in fields(kind):  # type: ignore[arg-type]  # every kind in _SECTIONS is a dataclass
        if member.name in table:
            values[member.name] = _value(table[member.name], types[member.name], f"{path}: {section}.{member.name}")
        elif member.default is MISSING:
            raise BoardError(f"{path}: {section}.{member.name}: is missing")
    return kind(**values)


def _value(value: Any, wanted: Any, where: str) -> Any:
    if get_origin(wanted) is UnionType:
        wanted = next(option for option in get_args(wanted) if option is not NoneType)
    if get_origin(wanted) is tuple:
        item = get_args(wanted)[0]
        if not isinstance(value, list):
            raise BoardError(f"{where}: must be a list, not {type(value).__name__}")
        return tuple(_value(entry, item, f"{where}[{i}]") for i, entry in enumerate(value))
    if type(value) is not wanted:  # bool is an int to isinstance
        raise BoardError(f"{where}: must be {wanted.__name__}, not {type(value).__name__} ({value!r})")
    return value
