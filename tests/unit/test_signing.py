"""Keys and signatures: what is made, what is refused, and that signing changes nothing else."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest

from edgellm import bundle as bundles
from edgellm import signing
from edgellm.bundle import Bundle
from edgellm.cli import main
from edgellm.errors import TrustError
from tests.standin import make_bundle

VECTORS = (  # RFC 8032, 7.1: public key, message, signature
    (
        "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
        "",
        "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe"
        "24655141438e7a100b",
    ),
    (
        "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
        "72",
        "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302a"
        "eeb00d291612bb0c00",
    ),
)
NEUTRAL = "01" + "00" * 31


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return make_bundle(tmp_path / "b", deployable=False)


@pytest.fixture(autouse=True)
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.delenv("EDGELLM_PASSPHRASE", raising=False)
    return tmp_path / "data"


def key(name: str = "me") -> signing.SigningKey:
    path = signing.keys_folder() / f"{name}.pem"
    if not path.exists():
        signing.generate(path, name)
    return signing.load_private(name)


def test_keygen_makes_a_private_and_a_public_half(data, capsys):
    assert main(["keygen", "home", "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    private = data / "edgellm/keys/home.pem"
    assert made["private"] == str(private)
    assert stat.S_IMODE(private.stat().st_mode) == 0o600
    assert (private.with_suffix(".pub")).read_text() == f"ed25519 {made['key']} home\n"
    assert signing.load_private("home").public == signing.load_public("home")
    before = private.read_bytes()
    assert main(["keygen", "home"]) == 1
    assert "is not replaced" in capsys.readouterr().err
    assert private.read_bytes() == before
    assert main(["keygen", "../home"]) == 1
    assert "cannot be a key's name" in capsys.readouterr().err


def test_a_passphrase_is_needed_from_then_on(data, monkeypatch):
    monkeypatch.setenv("EDGELLM_PASSPHRASE", "correct horse")
    assert main(["keygen", "locked", "--passphrase", "--json"]) == 0
    signing.load_private("locked")
    monkeypatch.setenv("EDGELLM_PASSPHRASE", "wrong")
    with pytest.raises(TrustError, match="wrong passphrase"):
        signing.load_private("locked")
    monkeypatch.delenv("EDGELLM_PASSPHRASE")
    with pytest.raises(TrustError, match="has a passphrase"):
        signing.load_private("locked")
    asked = []
    signing.load_private("locked", lambda prompt: asked.append(prompt) or "correct horse")
    assert len(asked) == 1


def test_a_private_key_open_to_others_is_refused(data):
    key()
    path = data / "edgellm/keys/me.pem"
    for mode in (0o640, 0o604, 0o620):
        path.chmod(mode)
        with pytest.raises(TrustError, match=f"chmod 600 {path}"):
            signing.load_private("me")


def test_keys_that_are_none(tmp_path):
    for text in (b"", b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"):
        (tmp_path / "x.pem").write_bytes(text)
        (tmp_path / "x.pem").chmod(0o600)
        with pytest.raises(TrustError, match="does not open"):
            signing.load_private(str(tmp_path / "x.pem"))
    with pytest.raises(TrustError, match="edgellm keygen"):
        signing.load_private("absent")
    for line in ("", "ed25519 12 me", f"ed25519 {'A' * 64} me", f"rsa {'a' * 64} me", f"ed25519 {'a' * 64}\nmore"):
        with pytest.raises(TrustError, match="not a line"):
            signing.parse_public(line, "here")
    for weak in (NEUTRAL, "00" * 32, "00" * 31 + "80", "ec" + "ff" * 30 + "7f", "ed" + "ff" * 31):
        with pytest.raises(TrustError, match="accepts every signature"):
            signing.parse_public(f"ed25519 {weak} me", "here")


def test_rfc_8032(bundle):
    for public, message, signature in VECTORS:
        assert signing._is_good(f"ed25519 {public} {signature}\n", bytes.fromhex(message))
        assert not signing._is_good(f"ed25519 {public} {signature}\n", b"another")
        more = int.from_bytes(bytes.fromhex(signature)[32:], "little") + 2**252 + 27742317777372353535851937790883648493
        malleable = signature[:64] + more.to_bytes(32, "little").hex()
        assert not signing._is_good(f"ed25519 {public} {malleable}\n", bytes.fromhex(message))
    assert not signing._is_good(f"ed25519 {NEUTRAL} {NEUTRAL}{'00' * 32}\n", b"anything")


def test_signing_changes_nothing_but_the_signature(bundle):
    before = {path.name: path.read_bytes() for path in bundle.path.iterdir() if path.is_file()}
    assert signing.signers(bundle) == []
    signing.sign(bundle, key())
    after = {path.name: path.read_bytes() for path in bundle.path.iterdir() if path.is_file()}
    assert set(after) - set(before) == {"manifest.sig"}
    assert all(after[name] == content for name, content in before.items())
    assert signing.check(bundles.verify(bundle.path), [key().public]) == key().public
    signing.sign(bundle, key())  # again: still one line
    signing.sign(bundle, key("you"))
    assert {signer.hex for signer in signing.signers(bundle)} == {key().public.hex, key("you").public.hex}
    assert bundles.copy(bundle, bundle.path.parent / "copy").sha256 == bundle.sha256
    assert (bundle.path.parent / "copy/manifest.sig").read_bytes() == (bundle.path / "manifest.sig").read_bytes()


def test_what_is_not_trusted_is_refused_with_the_remedy(bundle):
    with pytest.raises(TrustError, match=r"is not signed, .* --sign"):
        signing.check(bundle, [key().public])
    signing.sign(bundle, key("you"))
    with pytest.raises(TrustError, match=f"signed by key {key('you').public.short}, not by {key().public.short}"):
        signing.check(bundle, [key().public])


def test_a_signature_of_something_else_is_refused(bundle, tmp_path):
    other = make_bundle(tmp_path / "other", {"plan.json": b"{ }"}, deployable=False)
    signing.sign(other, key())
    line = (other.path / "manifest.sig").read_text()
    (bundle.path / "manifest.sig").write_text(line)
    with pytest.raises(TrustError, match="not one of this manifest"):
        signing.signers(bundle)
    for text in ("", "ed25519\n", line[:-1], line.upper(), line + "\n", line * 17, "\xff"):
        (bundle.path / "manifest.sig").write_bytes(text.encode("latin-1"))
        with pytest.raises(TrustError, match=r"manifest\.sig"):
            signing.signers(bundle)
    signing.sign(other, key())  # a signature that does not fit is no reason not to sign


def test_the_public_half_does_not_replace_the_private_one(data, tmp_path):
    with pytest.raises(TrustError, match=r"\.pub is the public half's ending"):
        signing.generate(tmp_path / "key.pub", "me")
    assert list(tmp_path.glob("key*")) == []


@pytest.mark.parametrize("name", ["a\u2028b", "\x1b[2J", "x" * 65])
def test_names_of_keys_are_short_lines(name):
    with pytest.raises(TrustError, match="not a line"):
        signing.parse_public(f"ed25519 {VECTORS[0][0]} {name}", "somewhere")
