"""Agreement in a world of one; tests/distributed/test_frames.py has two ranks."""

import pytest

from megatron_longrl.errors import ConfigError, DataError, UserError
from megatron_longrl.parallel.rank_errors import gather_objects, raise_on_all_ranks


def test_one_rank_gathers_its_own_value(alone):
    assert gather_objects(alone, {"a": 1}) == [{"a": 1}]
    assert gather_objects(alone, None) == [None]


def test_a_block_that_works_goes_on(alone):
    reached = []
    with raise_on_all_ranks(alone):
        reached.append(1)
    assert reached == [1]


def test_a_users_error_keeps_its_line(alone):
    with pytest.raises(UserError, match=r"^lower --lr$") as caught, raise_on_all_ranks(alone):
        raise UserError("lower --lr")
    assert isinstance(caught.value.__cause__, UserError)


@pytest.mark.parametrize("kind", [UserError, ConfigError, DataError])
def test_an_error_keeps_its_kind(alone, kind):
    class Special(kind):  # type: ignore[valid-type, misc]
        def __init__(self, a: int, b: int) -> None:
            super().__init__(f"{a}:{b}")

    with pytest.raises(kind, match=r"^1:2$") as caught, raise_on_all_ranks(alone):
        raise Special(1, 2)
    assert type(caught.value) is kind


def test_any_other_error_is_named_with_its_kind(alone):
    with (
        pytest.raises(UserError, match=r"^FileNotFoundError: x.webm$") as caught,
        raise_on_all_ranks(alone),
    ):
        raise FileNotFoundError("x.webm")
    assert isinstance(caught.value.__cause__, FileNotFoundError)


def test_an_interrupt_is_not_an_error_to_agree_on(alone):
    with pytest.raises(KeyboardInterrupt), raise_on_all_ranks(alone):
        raise KeyboardInterrupt
