"""Products of matrices against gathers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mnv2.ops.platforms import PLAIN, traced_for
from mnv2.preprocess import pixels, products
from tests.preprocess.test_pixels import photograph


def test_values_are_those_of_the_tables():
    picture, tables = photograph()[:40, :30], np.random.default_rng(0).integers(0, 256, (3, 256))
    result = jax.jit(products.look_up)(picture, tables.astype(np.uint8))
    np.testing.assert_array_equal(result, tables[np.arange(3), picture])


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear"])
@pytest.mark.parametrize("shape", [(130, 75, 3), (50, 120, 1), (3, 2, 3)], ids=str)
def test_warps_are_those_with_gathers(interpolation, shape):
    """Turns, and all that moves rows or columns; pictures of several tiles and of one."""
    picture = jnp.asarray(photograph()[100 : 100 + shape[0], 60 : 60 + shape[1], : shape[2]])
    turns = [pixels.rotate(angle, *shape[:2]) for angle in (-135, -30, 12.3, 90)]
    shears = [f(level) for level in (-0.99, 0.3) for f in (pixels.shear_x, pixels.shear_y)]
    shifts = [(1, 0, x, 0, 1, y) for x, y in ((0, 0), (7, 0), (0, -9), (400, 3), (-400.5, 90))]
    sixes = [*turns, *shears, *shifts]
    numbers = np.stack([pixels.warp_numbers(six, interpolation) for six in sixes])

    def results(platform):
        with traced_for(platform):
            return jax.jit(
                lambda many: jax.lax.map(
                    lambda one: pixels.warp(picture, one, interpolation, 7), many
                )
            )(numbers)

    np.testing.assert_array_equal(results("tpu"), results(PLAIN))
