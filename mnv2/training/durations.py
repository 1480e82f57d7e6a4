"""Durations in a config: '2 epochs', '1000 steps' or '100000 examples'."""

import math

from mnv2.runtime.errors import UserError, check_choice

UNITS = ("epochs", "steps", "examples")
MOST = 2**31 - 1  # steps are counted in 32 bits


def to_steps(duration: str, *, examples: int, batch_size: int, what: str = "duration") -> int:
    """Converts `duration` to training steps, rounded to the nearest and at least 1.

    A duration of 0 is 0 steps. An epoch is examples // batch_size steps. Raises UserError, naming
    the field `what`, for other text and for a part of a step.
    """
    try:
        number, unit = duration.split()
        amount = float(number)
    except ValueError:
        amount, unit = -1.0, UNITS[0]
    if not 0 <= amount < math.inf:
        raise UserError(
            f"{what} must be like '2 epochs', '1000 steps' or '100000 examples', got {duration!r}"
        )
    unit = unit if unit.endswith("s") else unit + "s"
    check_choice(unit, UNITS, f"unit in {what}")
    if unit != "epochs" and not amount.is_integer():
        raise UserError(f"{what} must be a whole number of {unit}, got {duration!r}")
    scale = {"epochs": examples // batch_size, "steps": 1, "examples": 1 / batch_size}[unit]
    if amount * scale > MOST:
        raise UserError(f"{what} must be at most {MOST:,} steps, got {duration!r}")
    return max(1, round(amount * scale)) if amount else 0
