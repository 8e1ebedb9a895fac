"""A bundle as one file: the same bytes each time, and nothing but a bundle comes out of it."""

from __future__ import annotations

import io
import json
import os
import random
import shutil
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgellm import archive, signing
from edgellm import bundle as bundles
from edgellm.bundle import Bundle
from edgellm.cli import main
from edgellm.errors import BundleError, EdgeError, TrustError, UnsuitableError
from tests.standin import make_bundle


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """A folder in memory where there is one: real flushes to a disk would make these tests slow."""
    shared = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=shared if os.access(shared, os.W_OK) else None) as folder:
        yield Path(folder)


@pytest.fixture(autouse=True)
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    made = make_bundle(tmp_path / "b", deployable=False)
    signing.generate(signing.key_path("me"), "me")
    signing.sign(made, signing.load_private("me"))
    return made


def packed(bundle: Bundle) -> bytes:
    sink = io.BytesIO()
    archive.pack(bundle, sink)
    return sink.getvalue()


def unpack(data: bytes, output: Path, **options: object) -> Bundle:
    return archive.unpack(io.BytesIO(data), "file", output, **options)  # type: ignore[arg-type]


def content(bundle: Bundle) -> dict[str, tuple[int, bytes]]:
    files = (path for path in bundle.path.rglob("*") if path.is_file() and path.name != ".verified")
    return {str(f.relative_to(bundle.path)): (f.stat().st_mode & 0o777, f.read_bytes()) for f in files}


def test_there_and_back(bundle, tmp_path):
    data = packed(bundle)
    done: list[tuple[int, int]] = []
    again = unpack(data, tmp_path / "again", progress=lambda *now: done.append(now))
    assert content(again) == content(bundle)
    assert done[-1] == (bundle.n_bytes, bundle.n_bytes)
    assert bundles.is_stamped(again)
    assert packed(again) == data


def test_the_bytes_depend_on_the_content_only(bundle, tmp_path):
    copy = tmp_path / "elsewhere" / "c"
    shutil.copytree(bundle.path, copy)
    for path in copy.rglob("*"):
        os.utime(path, (1, 1))
        path.chmod(0o700)
    (copy / ".pace").write_text("measured here")
    assert packed(bundles.read(copy)) == packed(bundle)


def test_any_tar_reads_it(bundle, tmp_path):
    with tarfile.open(fileobj=io.BytesIO(packed(bundle))) as tar:
        names = tar.getnames()
    assert names[:3] == ["manifest.json", "manifest.sha256", "manifest.sig"]
    assert set(names) == set(content(bundle))


def test_every_cut_and_every_flipped_bit_is_noticed(bundle, tmp_path):
    data, output = packed(bundle), tmp_path / "out"
    chance = random.Random(1)
    for _ in range(60):
        cut = chance.randrange(len(data))
        with pytest.raises(EdgeError):
            unpack(data[:cut], output)
        flipped = bytearray(data)
        at = chance.randrange(len(data))
        flipped[at] ^= 1 << chance.randrange(8)
        try:
            unpack(bytes(flipped), output)
        except EdgeError:
            pass
        else:  # fields of a tar header that mean nothing here, such as a time; the checksum is read generously
            assert content(bundles.read(output)) == content(bundle)
            shutil.rmtree(output)
        assert not output.exists()
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
    with pytest.raises(BundleError, match="follows its end"):
        unpack(data + b"x", output)


def entries(data: bytes) -> list[tuple[tarfile.TarInfo, bytes]]:
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        return [(member, tar.extractfile(member).read()) for member in tar]  # type: ignore[union-attr]


def rebuilt(members: list[tuple[tarfile.TarInfo, bytes]]) -> bytes:
    data = b""
    for member, body in members:
        data += member.tobuf(tarfile.GNU_FORMAT) + body + bytes(-len(body) % 512)
    return data + bytes(1024)


@pytest.mark.parametrize("name", ["../evil", "/tmp/evil", "weights/../../evil", ".verified", "manifest.sig", "extra"])
@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE])
def test_nothing_but_what_the_manifest_lists_comes_out(bundle, tmp_path, name, kind):
    for place in (0, 3, -1):
        members = entries(packed(bundle))
        evil = tarfile.TarInfo(name)
        evil.type, evil.linkname = kind, "/etc/passwd"
        members.insert(place if place >= 0 else len(members), (evil, b""))
        with pytest.raises(BundleError):
            unpack(rebuilt(members), tmp_path / "inner" / "out")
        assert list((tmp_path / "inner").iterdir()) == []
    assert not (tmp_path / "evil").exists()


def test_links_in_the_place_of_files_are_refused(bundle, tmp_path):
    for index, (member, _) in enumerate(entries(packed(bundle))):
        members = entries(packed(bundle))
        link = tarfile.TarInfo(member.name)
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        members[index] = (link, b"")
        with pytest.raises(BundleError):
            unpack(rebuilt(members), tmp_path / "out")


def claiming(tmp_path: Path, name: str, n_bytes: int) -> bytes:
    """A file whose manifest claims a file, and that ends behind its signature."""
    manifest = json.loads((make_bundle(tmp_path / "claim", deployable=False).path / "manifest.json").read_text())
    manifest["files"] = {name: {"bytes": n_bytes, "sha256": "0" * 64}}
    raw = json.dumps(manifest).encode()
    import hashlib

    digest = f"{hashlib.sha256(raw).hexdigest()}  manifest.json\n".encode()
    members = []
    for own, body in (("manifest.json", raw), ("manifest.sha256", digest)):
        header = tarfile.TarInfo(own)
        header.size = len(body)
        members.append((header, body))
    header = tarfile.TarInfo(name if len(name) < 100 else "x")
    header.size = n_bytes
    return rebuilt([*members, (header, b"")])


def test_what_does_not_fit_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(UnsuitableError, match=r"the bundle takes 1000000\.0 GB"):
        unpack(claiming(tmp_path, "plan.json", 10**15), tmp_path / "out")


@pytest.mark.parametrize("name", ["../x", "/x", "a/../../x", ".verified", "manifest.sig", "weights/.hidden"])
def test_paths_of_the_manifest_stay_inside(tmp_path, name):
    with pytest.raises(BundleError, match=r"path inside the bundle|cannot be a file of a bundle"):
        unpack(claiming(tmp_path, name, 10), tmp_path / "out")


def test_headers_cannot_make_us_read_without_end(bundle, tmp_path):
    for kind in (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_SPARSE):
        bomb = tarfile.TarInfo("manifest.json")
        bomb.type, bomb.size = kind, 1 << 40
        with pytest.raises(BundleError):
            unpack(rebuilt([(bomb, b"")]), tmp_path / "out")
    huge = tarfile.TarInfo("manifest.json")
    huge.size = 1 << 40
    with pytest.raises(BundleError, match="is not where it must be"):
        unpack(rebuilt([(huge, b"")]), tmp_path / "out")
    deep = tarfile.TarInfo("manifest.json")
    body = b"[" * 1_000_000
    deep.size = len(body)
    with pytest.raises(BundleError):
        unpack(rebuilt([(deep, body)]), tmp_path / "out")


def test_the_signature_is_checked_before_anything_is_written(bundle, tmp_path):
    signing.generate(signing.key_path("you"), "you")
    mine, yours = (signing.load_private(name).public for name in ("me", "you"))
    with pytest.raises(TrustError, match="signed by key"):
        unpack(packed(bundle)[:8192], tmp_path / "out", check=archive.trusting([yours]))  # what follows is not read
    unpack(packed(bundle), tmp_path / "out", check=archive.trusting([yours, mine]))
    (bundle.path / "manifest.sig").unlink()
    with pytest.raises(TrustError, match="is not signed"):
        unpack(packed(bundle), tmp_path / "unsigned", check=archive.trusting([mine]))
    unpack(packed(bundle), tmp_path / "unsigned", check=archive.trusting(None))


def test_a_bundle_that_changed_is_not_packed(bundle):
    weights = bundle.path / "weights/layer.1.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    with pytest.raises(BundleError, match="does not match its SHA-256"):
        packed(bundle)
    weights.write_bytes(b"")
    with pytest.raises(BundleError, match="has 0 bytes"):
        packed(bundle)


def test_the_commands(bundle, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["export", "b", "-o", "model.edgellm", "--sign", "me", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["bytes"] == (tmp_path / "model.edgellm").stat().st_size
    assert main(["import", "model.edgellm"]) == 0
    assert f"signed by key {signing.load_public('me').short}" in capsys.readouterr().out
    assert content(bundles.read(tmp_path / "model")) == content(bundle)
    assert main(["keygen", "you"]) == 0
    assert main(["import", "model.edgellm", "-o", "other", "--signed-by", "you"]) == 1
    assert "signed by key" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()
    assert main(["import", "b/plan.json"]) == 1
    assert main(["import", "absent.edgellm"]) == 1
    assert capsys.readouterr().err.count("\n") == 2
