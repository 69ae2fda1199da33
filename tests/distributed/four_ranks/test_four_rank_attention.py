"""Attention over four MR-SP ranks equals attention on one."""

import pytest

from tests.distributed.test_attention import LENGTHS, check

HEADS = [
    ("all_gather", 7, 1),
    ("all_gather", 8, 2),
    ("p2p", 7, 1),
    ("p2p", 8, 2),
    ("a2a", 8, 2),
    ("a2a", 8, 1),
    ("a2a", 8, 8),
]


@pytest.mark.parametrize("length", LENGTHS.values(), ids=LENGTHS)
@pytest.mark.parametrize("cp_comm_type, heads, groups", HEADS)
def test_equals_one_rank(cp_comm_type, heads, groups, length):
    check(cp_comm_type, heads, groups, length // 8 * 8)
