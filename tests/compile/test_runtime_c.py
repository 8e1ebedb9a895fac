"""The runtime's own C tests, plain and under ASan and UBSan."""

import subprocess
from pathlib import Path

RUNTIME_C = Path(__file__).resolve().parents[2] / "runtime_c"


def test_c_tests_pass_plain_and_under_sanitizers():
    done = subprocess.run(
        ["make", "--silent", "--no-print-directory", "-C", str(RUNTIME_C), "test"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for kind in ("plain", "asan"):
        for test in RUNTIME_C.glob("tests/test_*.c"):
            assert f"ok: {kind} {test.stem}" in done.stdout
