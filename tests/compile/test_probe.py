"""`edgellm-rt bench --bandwidth`, built and called as `edgellm bench --peer` does."""

import pytest

from crosscompile.target import target_of_tier
from edgellm.bandwidth import build_probe
from edgellm.boards import load_board
from edgellm.errors import PeerError
from edgellm.golden import host_target
from tests.caches import own_cache


def test_the_fastest_loop_is_the_widest_this_processor_has(monkeypatch, tmp_path):
    monkeypatch.setenv("EDGELLM_CACHE", own_cache(tmp_path))
    probe = build_probe(host_target())
    for threads in (1, 2):
        found = probe.measure(threads)
        assert found.threads == threads
        assert found.gb_s > 0.1
        assert found.loop.startswith("avx") == ("avx2" in load_board("local").cpu_features)
    with pytest.raises(PeerError, match="whole number"):
        probe.measure(0)


@pytest.mark.parametrize("tier", ["dotprod", "armv7-neon"])
def test_it_builds_for_boards(tier, monkeypatch, tmp_path):
    monkeypatch.setenv("EDGELLM_CACHE", own_cache(tmp_path))
    assert build_probe(target_of_tier(tier)).program.is_file()
