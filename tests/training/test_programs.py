import jax
import numpy as np

from mnv2.training import programs, settings
from mnv2.training.setup import set_up
from mnv2.training.setup import initial_state


def test_programs_are_dropped_only_from_a_process_that_has_grown(
    tiny_config, fashion_mnist, monkeypatch
):
    run = from_config(tiny_config)
    before = set_up(run)
    state = initial_state(before, run)
    monkeypatch.setattr(programs, "free_memory", lambda: 1 << 50)
    assert not programs.drop_if_large()
    assert set_up(run).steps is before.steps
    monkeypatch.setattr(programs, "free_memory", lambda: 0)
    assert programs.drop_if_large()
    after = set_up(run)
    assert after.steps is not before.steps
    jax.tree.map(np.testing.assert_array_equal, initial_state(after, run), state)
