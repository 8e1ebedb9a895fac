"""Encrypted weights as the host makes them; runtime_c/tests/test_encrypted.c reads the same bytes."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from edgellm import bundle as bundles
from edgellm import encryption
from edgellm.errors import TrustError
from tests.standin import make_bundle

KEY = bytes(range(32))


def encrypted(tmp_path: Path, content: bytes, key: bytes = KEY) -> Path:
    plain, output = tmp_path / "plain", tmp_path / "encrypted"
    plain.write_bytes(content)
    made = encryption.encrypt(plain, hashlib.sha256(content).hexdigest(), key, output)
    assert made == hashlib.sha256(output.read_bytes()).hexdigest()
    return output


def test_the_bytes_are_those_that_the_runtime_is_tested_with(tmp_path):
    assert encryption.key_id(KEY) == "35c3732783180235"
    assert encrypted(tmp_path, b"weights").read_bytes().hex() == (
        "454c4c4d454e43310700000000000000d8ba0b190bb84fb233356333373332373833313830323335261b4f11d5778493c6035acad5d6de"
        "93996cb85c06ceff"
    )


def decrypt(path: Path, key: bytes) -> bytes:
    """FORMAT.md's words as code."""
    data, plain = path.read_bytes(), b""
    assert data[:8] == b"ELLMENC1"
    assert data[24:40].decode() == hashlib.sha256(b"edgellm weights key 1\n" + key).hexdigest()[:16]
    for number, at in enumerate(range(40, len(data), 65536 + 16)):
        nonce = data[16:24] + number.to_bytes(4, "little")
        plain += ChaCha20Poly1305(key).decrypt(nonce, data[at : at + 65536 + 16], data[:40])
    assert len(plain) == int.from_bytes(data[8:16], "little")
    return plain


@pytest.mark.parametrize("n_bytes", [1, 65535, 65536, 65537, 200_000])
def test_there_and_back(tmp_path, n_bytes):
    content = os.urandom(n_bytes)
    path = encrypted(tmp_path, content)
    assert path.stat().st_size == encryption.encrypted_bytes(n_bytes)
    assert decrypt(path, KEY) == content


def test_the_nonce_belongs_to_key_and_content(tmp_path):
    first = encrypted(tmp_path, b"one").read_bytes()
    assert encrypted(tmp_path, b"one").read_bytes() == first
    nonces = {first[16:24], encrypted(tmp_path, b"two").read_bytes()[16:24]}
    nonces.add(encrypted(tmp_path, b"one", KEY[::-1]).read_bytes()[16:24])
    assert len(nonces) == 3
    (tmp_path / "plain").write_bytes(b"changed meanwhile")
    with pytest.raises(TrustError, match="does not match its SHA-256"):
        encryption.encrypt(tmp_path / "plain", hashlib.sha256(b"one").hexdigest(), KEY, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_only_weights_of_a_bundle_are_encrypted_and_unchanged_ones_once(tmp_path, monkeypatch):
    monkeypatch.setenv("EDGELLM_CACHE", str(tmp_path / "cache"))
    bundle = make_bundle(tmp_path / "b", deployable=False)
    before = {path: path.stat() for path in bundle.path.rglob("*")}
    with encryption.encrypted(bundle, KEY) as made:
        assert (made.sha256, made.manifest) == (bundle.sha256, bundle.manifest)
        for plain, file in zip(bundle.files, made.files, strict=True):
            data = (made.path / file.path).read_bytes()
            assert (len(data), hashlib.sha256(data).hexdigest()) == (file.n_bytes, file.sha256)
            changed = plain.path.endswith(".safetensors")
            assert (plain != file) == changed
            if changed:
                assert decrypt(made.path / file.path, KEY) == (bundle.path / plain.path).read_bytes()
        lines = (made.path / "manifest.enc").read_text().splitlines()
        assert len(lines) == 2
        pairs = {(plain.sha256, file.sha256) for plain, file in zip(bundle.files, made.files, strict=True)}
        assert {tuple(line.split()) for line in lines} <= pairs
    assert not made.path.exists()
    assert {path: path.stat() for path in bundle.path.rglob("*")} == before
    bundles.verify(bundle.path)
    kept = {path: path.stat().st_ino for path in (tmp_path / "cache/encrypted").rglob("*") if path.is_file()}
    other = make_bundle(tmp_path / "other", {"weights/layer.1.safetensors": b"two" * 5000}, deployable=False)
    with encryption.encrypted(other, KEY):
        now = {path: path.stat().st_ino for path in (tmp_path / "cache/encrypted").rglob("*") if path.is_file()}
    assert len(now) == 3
    assert all(now[path] == inode for path, inode in kept.items())


def test_keys(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    path = encryption.key_path("kitchen-pi@10.0.0.7:22/../x")
    assert path.parent == tmp_path / "edgellm/weights"
    with pytest.raises(TrustError, match="cannot be read"):
        encryption.load_key(path)
    key = encryption.load_key(path, make=True)
    assert len(key) == 32
    assert encryption.load_key(path, make=True) == key
    path.chmod(0o644)
    with pytest.raises(TrustError, match="chmod 600"):
        encryption.load_key(path)
    path.chmod(0o600)
    path.write_bytes(b"short")
    with pytest.raises(TrustError, match="5 bytes, not 32"):
        encryption.load_key(path)
