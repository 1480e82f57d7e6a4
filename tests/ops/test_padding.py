import pytest

from mnv2.ops import explicit_padding
from mnv2.runtime.errors import UserError


def test_same_padding_puts_an_odd_zero_at_the_bottom_and_right():
    assert explicit_padding((224, 224), 3, 2) == ((0, 1), (0, 1))
    assert explicit_padding((15, 14), 3, 2) == ((1, 1), (0, 1))
    assert explicit_padding((7, 7), 3, 1) == ((1, 1), (1, 1))
    assert explicit_padding((8, 8), 1, 2) == ((0, 0), (0, 0))


def test_symmetric_padding_is_half_the_kernel_on_every_side():
    assert explicit_padding((224, 15), 3, 2, "symmetric") == ((1, 1), (1, 1))
    assert explicit_padding((224, 15), 7, 2, "symmetric") == ((3, 3), (3, 3))


def test_an_unknown_padding_convention_is_refused():
    with pytest.raises(UserError, match="did you mean 'symmetric'"):
        explicit_padding((8, 8), 3, 1, "symetric")
