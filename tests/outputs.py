"""What networks compute, compiled once for all tests in which the same network occurs.

The plain forms of operations compile in half of the time. The others compute the same: tests/ops.
"""

import functools

import jax

from mnv2.ops import PLAIN, traced_for


@functools.partial(jax.jit, static_argnums=0)
def of(model, variables, images):
    """Returns the output of a network in evaluation."""
    with traced_for(PLAIN):
        return model.apply(variables, images)


def of_loaded(loaded, pictures):
    """Returns the output of a network that was loaded from a file, for pictures from 0 to 255."""
    return of(loaded.model, loaded.variables, loaded.preprocess(pictures))
