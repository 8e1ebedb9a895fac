"""The runtime's own C tests, plain and under ASan and UBSan, and those with threads under TSan."""

from tests.runtime_make import RUNTIME_C, make


def test_c_tests_pass_plain_and_under_sanitizers():
    printed = make("test")
    for kind in ("plain", "asan"):
        for test in RUNTIME_C.glob("tests/test_*.c"):
            assert f"ok: {kind} {test.stem}" in printed


def test_threads_pass_under_thread_sanitizer():
    printed = make("run-tests", "KIND=tsan", "TESTS=test_pool test_context test_encrypted test_batch")
    assert "ok: tsan test_pool" in printed
    assert "ok: tsan test_context" in printed
    assert "ok: tsan test_encrypted" in printed
    assert "ok: tsan test_batch" in printed
