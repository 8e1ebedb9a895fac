"""Bundles on disk: sealing, verification with an error per file, and builds that leave nothing half-written."""

import hashlib
import json
import os
import shutil

import pytest

from edgellm import bundle as bundles
from edgellm.errors import BundleError

MANIFEST = {
    "model": {"name": "tiny"},
    "scheme": {"name": "w4a8"},
    "target": {"tier": "dotprod"},
    "memory": {},
    "generation": {"stop_ids": [2]},
    "golden": [],
}


@pytest.fixture
def bundle(tmp_path):
    with bundles.building(tmp_path / "b") as partial:
        (partial / "weights").mkdir()
        (partial / "weights" / "layer.0.safetensors").write_bytes(os.urandom(5000))
        (partial / "plan.json").write_text("{}")
        (partial / "edgellm-rt").write_bytes(b"\x7fELF")
        bundles.seal(partial, MANIFEST)
    return bundles.read(tmp_path / "b")


def test_a_sealed_bundle_lists_every_file(bundle):
    assert {file.path for file in bundle.files} == {"weights/layer.0.safetensors", "plan.json", "edgellm-rt"}
    assert bundle.manifest["format"] == 1
    assert (bundle.name, bundle.scheme, bundle.tier) == ("tiny", "w4a8", "dotprod")
    digest = hashlib.sha256((bundle.path / "manifest.json").read_bytes()).hexdigest()
    assert (bundle.path / "manifest.sha256").read_text() == f"{digest}  manifest.json\n"
    status = (bundle.path / "weights" / "layer.0.safetensors").stat()
    stamp = f"edgellm-verified 1 {digest}\n{status.st_ino} 5000 {status.st_ctime_ns} weights/layer.0.safetensors\n"
    assert (bundle.path / ".verified").read_text() == stamp
    assert bundles.verify(bundle.path) == bundle


def test_verify_names_every_wrong_file(bundle):
    weights = bundle.path / "weights" / "layer.0.safetensors"
    raw = bytearray(weights.read_bytes())
    raw[4321] ^= 1
    weights.write_bytes(raw)
    (bundle.path / "plan.json").write_text("{ }")
    (bundle.path / "edgellm-rt").unlink()
    with pytest.raises(BundleError) as error:
        bundles.verify(bundle.path)
    text = str(error.value)
    assert "layer.0.safetensors does not match its SHA-256" in text
    assert "plan.json has 3 bytes, the manifest says 2" in text
    assert "edgellm-rt cannot be read: No such file" in text
    assert text.endswith("compile the bundle again")


def test_any_flipped_byte_is_found(bundle):
    for name in ("manifest.json", "manifest.sha256", "plan.json", "edgellm-rt", "weights/layer.0.safetensors"):
        file = bundle.path / name
        raw = bytearray(file.read_bytes())
        for at in range(0, len(raw), max(len(raw) // 40, 1)):
            raw[at] ^= 0x20
            file.write_bytes(raw)
            with pytest.raises(BundleError):
                bundles.verify(bundle.path)
            raw[at] ^= 0x20
        file.write_bytes(raw)
    bundles.verify(bundle.path)


def test_the_stamp_is_not_believed_after_a_change(bundle):
    assert bundles.is_stamped(bundle)
    weights = bundle.path / "weights" / "layer.0.safetensors"
    raw = weights.read_bytes()
    weights.write_bytes(raw)
    assert not bundles.is_stamped(bundle)
    bundles.verify(bundle.path)
    assert bundles.is_stamped(bundle)


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a//b", "weights/../../x", ""])
def test_paths_stay_inside(tmp_path, name):
    with bundles.building(tmp_path / "b") as partial:
        bundles.seal(partial, MANIFEST)
        text = (partial / "manifest.json").read_text()
        entry = f'"files": {{"{name}": {{"bytes": 1, "sha256": "{"0" * 64}"}}}}'
        text = text.replace('"files": {}', entry)
        (partial / "manifest.json").write_text(text)
        (partial / "manifest.sha256").write_text(f"{hashlib.sha256(text.encode()).hexdigest()}  manifest.json\n")
    with pytest.raises(BundleError, match="not a path inside the bundle"):
        bundles.read(tmp_path / "b")


def test_a_failed_build_leaves_nothing_and_keeps_the_old_bundle(tmp_path, bundle):
    def fail(output):
        with bundles.building(output) as partial:
            (partial / "plan.json").write_text("half")
            raise RuntimeError

    for output in (bundle.path, tmp_path / "new"):
        with pytest.raises(RuntimeError):
            fail(output)
    assert os.listdir(tmp_path) == ["b"]
    bundles.verify(bundle.path)


def test_what_a_killed_build_left_is_swept(tmp_path):
    stale = tmp_path / ".b.4194999.partial"  # beyond the largest process id
    stale.mkdir()
    (stale / "weights").write_bytes(b"x")
    with bundles.building(tmp_path / "b") as partial:
        (partial / "plan.json").write_text("{}")
        bundles.seal(partial, MANIFEST)
    assert os.listdir(tmp_path) == ["b"]


def test_other_directories_are_not_replaced(tmp_path):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "letter").write_text("dear")
    with pytest.raises(BundleError, match="exists and is not a bundle"), bundles.building(tmp_path / "home"):
        pass
    assert os.listdir(tmp_path / "home") == ["letter"]
    (tmp_path / "home" / "manifest.json").write_text("{}")  # as many projects have one
    with pytest.raises(BundleError, match="exists and is not a bundle"), bundles.building(tmp_path / "home"):
        pass
    assert sorted(os.listdir(tmp_path / "home")) == ["letter", "manifest.json"]


def test_copy(tmp_path, bundle):
    copied = bundles.copy(bundle, tmp_path / "c")
    assert copied.sha256 == bundle.sha256
    shutil.rmtree(bundle.path)
    bundles.verify(tmp_path / "c")
    assert sorted(os.listdir(tmp_path)) == ["c"]


def test_what_is_not_a_bundle(tmp_path):
    with pytest.raises(BundleError, match="is not a directory"):
        bundles.read(tmp_path / "nope")
    with pytest.raises(BundleError, match=r"is not a bundle: .*manifest\.json cannot be read"):
        bundles.read(tmp_path)


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("model", "name", "\x1b[2J"),
        ("model", "name", "\ud800"),
        ("model", "context_length", "many"),
        ("memory", "weight_bytes", -1),
        ("memory", "kv_bytes_per_token", 1 << 63),
        ("memory", "arena_bytes", True),
        ("target", "tier", 7),
    ],
)
def test_a_manifest_says_what_it_must(bundle, section, key, value):
    manifest = json.loads((bundle.path / "manifest.json").read_text())
    manifest[section][key] = value
    text = json.dumps(manifest)
    (bundle.path / "manifest.json").write_text(text)
    digest = hashlib.sha256(text.encode()).hexdigest()
    (bundle.path / "manifest.sha256").write_text(f"{digest}  manifest.json\n")
    with pytest.raises(BundleError, match=f"{section}.{key} is"):
        bundles.read(bundle.path)
