"""Where a virtual board's packages come from, and that half a part is never left behind."""

import pytest

from edgellm import virtual_parts
from edgellm.errors import VirtualBoardError
from edgellm.virtual_parts import package_sources


def test_sources_are_read_in_both_formats(tmp_path):
    (tmp_path / "sources.list").write_text(
        "# deb http://commented bookworm main\n"
        "deb http://one/debian bookworm main contrib # note\n"
        "deb-src http://source bookworm main\n"
        "deb [arch=amd64 signed-by=/x] http://two/ubuntu noble main\n"
    )
    folder = tmp_path / "sources.list.d"
    folder.mkdir()
    (folder / "more.list").write_text("deb http://three stable main\n")
    (folder / "debian.sources").write_text(
        "Types: deb deb-src\n# a note\nURIs: http://four/debian http://five/debian\nSuites: trixie trixie-updates\n"
        "Signed-By:\n -----BEGIN PGP\n Suites: fake\n\n"
        "Types: deb\nEnabled: no\nURIs: http://six\nSuites: bookworm\n\n"
        "Types: deb-src\nURIs: http://seven\nSuites: bookworm\n"
    )
    assert list(package_sources(tmp_path)) == [
        ("http://one/debian", {"bookworm"}),
        ("http://two/ubuntu", {"noble"}),
        ("http://three", {"stable"}),
        ("http://four/debian", {"trixie", "trixie-updates"}),
        ("http://five/debian", {"trixie", "trixie-updates"}),
    ]


def test_no_configuration_means_no_sources(tmp_path):
    assert list(package_sources(tmp_path)) == []


def test_part_is_made_once_and_a_failure_leaves_nothing(tmp_path):
    made = []

    def fail(folder, progress):
        (folder / "half").touch()
        raise VirtualBoardError("the mirror is gone")

    def make(folder, progress):
        made.append(folder)
        (folder / "whole").touch()

    with pytest.raises(VirtualBoardError):
        virtual_parts.ensure_part(tmp_path, "thing", ("a",), lambda *_: None, fail)
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]
    first = virtual_parts.ensure_part(tmp_path, "thing", ("a",), lambda *_: None, make)
    assert virtual_parts.ensure_part(tmp_path, "thing", ("a",), lambda *_: None, make) == first
    assert [path.name for path in first.iterdir()] == ["whole"]
    assert len(made) == 1
    assert virtual_parts.ensure_part(tmp_path, "thing", ("a", "b"), lambda *_: None, make) != first
