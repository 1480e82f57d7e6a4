import pytest

from mnv2.runtime.errors import UserError
from mnv2.training.config import to_steps


@pytest.mark.parametrize(
    ("duration", "steps"),
    [("2 epochs", 20), ("1 epoch", 10), ("0.5 epochs", 5), ("7 steps", 7), ("100 examples", 10),
     ("0 epochs", 0), ("0.001 epochs", 1)],
)  # fmt: skip
def test_a_duration_is_so_many_steps(duration, steps):
    assert to_steps(duration, examples=109, batch_size=10) == steps


@pytest.mark.parametrize("duration", ["", "two epochs", "5", "-1 steps", "nan epochs", "1 2 steps"])
def test_other_text_is_refused_with_an_example_of_what_would_be_right(duration):
    with pytest.raises(UserError, match="warmup must be like '2 epochs', '1000 steps'"):
        to_steps(duration, examples=100, batch_size=10, what="warmup")


def test_a_part_of_a_step_is_refused():
    with pytest.raises(UserError, match=r"duration must be a whole number of steps, got '0.1 ste"):
        to_steps("0.1 steps", examples=100, batch_size=10)


def test_an_unknown_unit_is_refused_with_the_nearest():
    with pytest.raises(UserError, match="unknown unit in duration 'epocs': did you mean 'epochs'"):
        to_steps("3 epocs", examples=100, batch_size=10)
