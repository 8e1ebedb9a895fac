"""The documents tell the truth about what lies here."""

import hashlib
import re
from fnmatch import fnmatch
from pathlib import Path

import pytest

from edgellm.cli import COMMANDS

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("ansible_collections", "boards", "crosscompile", "docs", "edgellm", "examples", "runtime_c", "tests")


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_top_level_folder_has_a_short_readme(folder):
    assert 0 < len((ROOT / folder / "README.md").read_text().splitlines()) <= 60


def test_readme_has_every_command():
    table = (ROOT / "README.md").read_text()
    assert {name for name in COMMANDS if f"`edgellm {name}" not in table} == set()


@pytest.mark.parametrize("document", ["README.md", "CONTRIBUTING.md", *(f"{folder}/README.md" for folder in FOLDERS)])
def test_links_and_make_targets_exist(document):
    text = (ROOT / document).read_text()
    for link in re.findall(r"\]\((?!https?:)([^)#]+)\)", text):
        assert ((ROOT / document).parent / link).exists(), link
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for target in re.findall(r"`make ([a-z-]+)", text):
        assert target in targets, target


def test_code_of_others_is_what_they_released():
    folder = ROOT / "runtime_c/third_party"
    listed = dict(
        reversed(line.split("  "))
        for line in re.findall(r"^[0-9a-f]{64}  .+$", (folder / "README.md").read_text(), re.M)
    )
    there = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    assert {
        name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in there.items() if name != "README.md"
    } == listed


def test_the_applications_readme_has_every_module():
    table = (ROOT / "edgellm/README.md").read_text()
    rows = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    patterns = {name for row in rows for name in re.findall(r"`([^`]+)`", row)}
    modules = {path.stem for path in (ROOT / "edgellm").glob("*.py") if not path.stem.startswith("__")}
    assert {name for name in modules if not any(fnmatch(name, pattern) for pattern in patterns)} == set()
    assert {pattern for pattern in patterns if not any(fnmatch(name, pattern) for name in modules)} == set()
