"""What the campaign of cycles makes of the blocks that an emulator executed."""

import pytest

from tests.campaigns.cycles import branches, joined, more, read

NOP, RETURN, BRANCH = "1f2003d5", "c0035fd6", "e0ffff54"
"""AArch64: nop, ret, and b.eq to four instructions before."""


def test_a_block_that_is_translated_twice_counts_twice():
    assert read([f"1000 600 f {NOP}", f"1000 400 f {NOP}"]) == {(0x1000, NOP): (1000, "f")}


def test_what_both_runs_execute_goes_away():
    few = read([f"1000 64 f {NOP}", f"1004 64 f {RETURN}"])
    many = read([f"1000 128 f {NOP}", f"1004 200 f {RETURN}", f"2000 7 g {BRANCH}"])
    assert joined(more(few, many)) == {NOP: (64, "f"), RETURN: (136, "f"), BRANCH: (7, "g")}
    with pytest.raises(RuntimeError, match="different addresses"):
        more(few, read([f"3000 128 f {NOP}"]))


def test_blocks_are_put_together_where_no_branch_cuts_them():
    blocks = read([f"1000 50 f {NOP}", f"1004 51 - {BRANCH}", f"1008 50 - {NOP}"])
    assert joined(blocks) == {NOP + BRANCH: (50, "f"), NOP: (50, "-")}


@pytest.mark.parametrize(
    ("word", "ends"),
    [
        (NOP, False),
        (RETURN, True),
        (BRANCH, True),
        ("00000014", True),  # b
        ("00000094", True),  # bl
        ("400000b4", True),  # cbz x0
        ("40000037", True),  # tbnz w0, #0
        ("0004004f", False),  # movi v0.4s, #0
    ],
)
def test_branches_are_known(word, ends):
    assert branches(word) == ends
