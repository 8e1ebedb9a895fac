"""MODEL as a Hub id, through huggingface_hub, against a server on loopback."""

import hashlib
import http.server
import json
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import ClassVar

import pytest

from edgellm import hub
from edgellm.errors import ModelError

ROOT = Path(__file__).parents[2]
COMMIT = "0123456789abcdef0123456789abcdef01234567"
CONFIG = {"architectures": ["LlamaForCausalLM"], "hidden_size": 64}
FILES = {
    "config.json": json.dumps(CONFIG).encode(),
    "tokenizer.json": b"{}",
    "model.safetensors": bytes(range(256)) * 98304,
    "pytorch_model.bin": b"never fetched",
    "onnx/model.onnx": b"never fetched",
    "README.md": b"never fetched",
    "tiny-Q4_0.gguf": b"GGUF one",
    "big/tiny-F16-00001-of-00002.gguf": b"GGUF part 1",
    "big/tiny-F16-00002-of-00002.gguf": b"GGUF part 2",
}


class Hub(http.server.BaseHTTPRequestHandler):
    """As much of the Hub's API as snapshot_download asks for. `cut`: bytes after which a weight download breaks."""

    protocol_version = "HTTP/1.1"
    cut: ClassVar[int | None] = None
    requests: ClassVar[list[tuple[str, str, str | None]]] = []

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.answer(head=True)

    def do_GET(self) -> None:
        self.answer(head=False)

    def json(self, value: object, status: int = 200, **headers: str) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        for key, text in headers.items():
            self.send_header(key.replace("_", "-"), text)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def answer(self, head: bool) -> None:
        path, _, _ = self.path.partition("?")
        type(self).requests.append((self.command, path, self.headers.get("Range")))
        if path.startswith("/api/models/org/tiny"):
            if "/tree/" in path:
                tree = [{"type": "file", "path": n, "size": len(c), "oid": "0" * 40} for n, c in FILES.items()]
                self.json(tree)
            elif path.endswith("/revision/nope"):
                self.json({"error": "Invalid rev"}, 404, X_Error_Code="RevisionNotFound")
            else:
                self.json({"id": "org/tiny", "sha": COMMIT, "siblings": [{"rfilename": name} for name in FILES]})
            return
        if path.startswith("/api/models/org/gated"):
            self.json({"error": "gated"}, 403, X_Error_Code="GatedRepo")
            return
        prefix = f"/org/tiny/resolve/{COMMIT}/"
        if not path.startswith(prefix):
            self.json({"error": "not found"}, 404, X_Error_Code="RepoNotFound")
            return
        content = FILES[path[len(prefix) :]]
        start = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").split("-")[0])
        self.send_response(206 if start else 200)
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        if head:
            return
        body = content[start:]
        if self.cut is not None and path.endswith(".safetensors"):
            body, type(self).cut = body[: self.cut], None
            self.wfile.write(body)
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        self.wfile.write(body)


@pytest.fixture
def endpoint(tmp_path):
    Hub.cut, Hub.requests = None, []
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()
    thread.join()


def resolve(model: str, home: Path, endpoint: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """hub.resolve in a process of its own: huggingface_hub reads its environment when it is imported."""
    program = (
        "import sys; from edgellm import hub; from edgellm.errors import EdgeError\n"
        "try: print(*hub.resolve(sys.argv[1]), sep='\\n')\n"
        "except EdgeError as error: print(error); sys.exit(1)\n"
    )
    settings = {
        "HF_HOME": str(home),
        "HF_ENDPOINT": endpoint,
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
    inherited = {
        k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING")) and "proxy" not in k.lower()
    }
    return subprocess.run(
        [sys.executable, "-c", program, model],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**inherited, **settings, **environment},
        check=False,
    )


def test_fetches_only_what_is_needed_and_then_works_offline(tmp_path, endpoint):
    first = resolve("org/tiny", tmp_path / "home", endpoint)
    assert first.returncode == 0, first.stdout + first.stderr
    path, name = first.stdout.splitlines()
    assert name == "tiny"
    assert sorted(os.listdir(path)) == ["config.json", "model.safetensors", "tokenizer.json"]
    for file in os.listdir(path):
        assert (Path(path) / file).read_bytes() == FILES[file]
    Hub.requests.clear()
    again = resolve("org/tiny", tmp_path / "home", endpoint)
    assert again.stdout == first.stdout
    assert not [request for request in Hub.requests if request[0] == "GET" and "/resolve/" in request[1]]
    Hub.requests.clear()
    offline = resolve("org/tiny", tmp_path / "home", endpoint, HF_HUB_OFFLINE="1")
    assert offline.stdout == first.stdout
    assert Hub.requests == []


def test_a_broken_download_resumes(tmp_path, endpoint):
    Hub.cut = 15_000_000
    done = resolve("org/tiny", tmp_path / "home", endpoint)
    if done.returncode:  # huggingface_hub gave up instead of retrying by itself: the next call goes on
        assert "run the command again" in done.stdout
        done = resolve("org/tiny", tmp_path / "home", endpoint)
    assert done.returncode == 0, done.stdout + done.stderr
    path = Path(done.stdout.splitlines()[0])
    assert (path / "model.safetensors").read_bytes() == FILES["model.safetensors"]
    ranges = [r for command, p, r in Hub.requests if command == "GET" and p.endswith("model.safetensors")]
    assert any(r and r != "bytes=0-" for r in ranges), ranges


@pytest.mark.parametrize(
    ("model", "text"),
    [
        ("org/missing", "org/missing is neither a directory nor on the Hub"),
        ("org/tiny@nope", "org/tiny has no revision nope"),
        ("org/gated", "org/gated needs its licence accepted"),
    ],
)
def test_errors_are_one_line_with_a_remedy(tmp_path, endpoint, model, text):
    done = resolve(model, tmp_path / "home", endpoint)
    assert done.returncode == 1, done.stderr
    assert text in done.stdout
    assert len(done.stdout.splitlines()) == 1


def test_offline_and_not_there(tmp_path, endpoint):
    done = resolve("org/tiny", tmp_path / "home", endpoint, HF_HUB_OFFLINE="1")
    assert done.returncode == 1, done.stderr
    assert "not in the Hub cache and HF_HUB_OFFLINE is set" in done.stdout
    done = resolve("org/tiny", tmp_path / "home", "http://127.0.0.1:9")
    assert done.returncode == 1, done.stderr
    assert "check the network" in done.stdout


def test_directories_and_nonsense(tmp_path):
    (tmp_path / "My Model").mkdir()
    assert hub.resolve(tmp_path / "My Model") == (tmp_path / "My Model", "My Model")
    for directory, name in (("assistant/model", "assistant"), ("models--org--tiny/snapshots/0123", "tiny")):
        (tmp_path / directory).mkdir(parents=True)
        assert hub.resolve(tmp_path / directory)[1] == name
    for model in ("./nope/model", "nope", "a/b/c", "/etc/nope", "https://example.org/x"):
        with pytest.raises(ModelError, match="does not exist; name a checkpoint directory or a Hub id"):
            hub.resolve(model)


def test_one_gguf_file_of_a_repository(tmp_path, endpoint):
    done = resolve("org/tiny/tiny-Q4_0.gguf", tmp_path / "home", endpoint)
    assert done.returncode == 0, done.stdout + done.stderr
    path, name = done.stdout.splitlines()
    assert name == "tiny-Q4_0"
    assert os.listdir(Path(path).parent) == ["tiny-Q4_0.gguf"]
    assert Path(path).read_bytes() == FILES["tiny-Q4_0.gguf"]
    missing = resolve("org/tiny/tiny-Q2_K.gguf", tmp_path / "home", endpoint)
    assert missing.returncode == 1
    assert "org/tiny has no file tiny-Q2_K.gguf" in missing.stdout


def test_all_parts_of_a_split_gguf_file_are_fetched(tmp_path, endpoint):
    done = resolve("org/tiny/big/tiny-F16-00001-of-00002.gguf", tmp_path / "home", endpoint)
    assert done.returncode == 0, done.stdout + done.stderr
    path = Path(done.stdout.splitlines()[0])
    assert sorted(os.listdir(path.parent)) == ["tiny-F16-00001-of-00002.gguf", "tiny-F16-00002-of-00002.gguf"]
