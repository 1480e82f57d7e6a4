import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mnv2.preprocess.mixing import mix


@functools.cache
def shares(count=300, **arguments):
    """Returns the shares of many steps, and the images of a batch of zeros and ones."""
    images = jnp.stack([jnp.zeros((20, 30, 1)), jnp.ones((20, 30, 1))])
    one = jax.jit(lambda step: mix(images, jax.random.key(0), step, **arguments))
    results = [one(jnp.asarray(step)) for step in range(count)]
    return np.array([share for _, share in results]), [np.asarray(mixed) for mixed, _ in results]


@pytest.mark.parametrize("alpha", [0.2, 1.0])
def test_mixup_mixes_whole_pictures_with_a_share_of_its_beta_distribution(alpha):
    found, images = shares(mixup=alpha)
    for share, (zeros, ones) in zip(found, images, strict=True):
        np.testing.assert_allclose(zeros, 1 - share, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(ones, share, rtol=1e-5, atol=1e-6)
    assert found.mean() == pytest.approx(0.5, abs=0.07)
    # The variance of a beta distribution of (alpha, alpha).
    assert found.var() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.2)


def test_cutmix_pastes_a_rectangle_and_its_share_is_the_area_that_is_left():
    found, images = shares(cutmix=1.0)
    for share, (zeros, ones) in zip(found, images, strict=True):
        pasted = zeros[..., 0]
        assert set(np.unique(pasted)) <= {0.0, 1.0}
        assert pasted.mean() == pytest.approx(1 - share, abs=1e-6)
        rows, columns = pasted.any(1).sum(), pasted.any(0).sum()
        assert pasted.sum() == rows * columns
        np.testing.assert_array_equal(ones, 1 - zeros)
    # A rectangle that reaches over the border is cut, so less than half is pasted.
    assert 0.55 < found.mean() < 0.75


def test_with_both_each_step_takes_one_of_them():
    _, images = shares(mixup=0.4, cutmix=1.0)
    cut = [set(np.unique(zeros)) <= {0.0, 1.0} for zeros, _ in images]
    assert 0.35 < np.mean(cut) < 0.65


def test_the_share_is_a_function_of_key_and_step_and_nothing_is_mixed_from_the_last_one_on():
    without_end, _ = shares(mixup=0.4, cutmix=1.0)
    found, images = shares(20, mixup=0.4, cutmix=1.0, until=10)
    np.testing.assert_array_equal(found[:10], without_end[:10])
    assert len(set(found[:10].tolist())) == 10
    assert (found[10:] == 1).all()
    assert all(zeros.max() == 0 for zeros, _ in images[10:])
