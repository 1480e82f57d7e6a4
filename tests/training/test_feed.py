import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mnv2.data import train_rows
from mnv2.training.config import from_config
from mnv2.training.feed import create_feed, stack
from mnv2.training.setup import initial_state, set_up
from mnv2.training.step import look_up, shard, unstack


@pytest.fixture
def run(tiny_config, fashion_mnist):
    """A run whose batches are augmented on the devices, with dropout and averages."""
    tiny_config.data.augmentation = "crop_flip"
    tiny_config.model.dropout = 0.3
    tiny_config.ema_decay = 0.9
    return from_config(tiny_config)


def computed(run, counts):
    """Returns the state and the sums after calls of so many steps."""
    setup = set_up(run)
    state, feed = initial_state(setup, run), create_feed(setup, run, 0)
    window = []
    for count in counts:
        call = feed.next(count, rate=1000.0)
        state, metrics = call.program(state, *call.arguments)
        window.append((metrics, call.steps))
    return jax.device_get(state), unstack(window)


def test_several_steps_in_one_call_are_those_of_one_at_a_time(run):
    one, sums = computed(run, [1] * 5)
    several, theirs = computed(run, [3, 2])
    assert int(one.step) == 5
    jax.tree.map(np.testing.assert_array_equal, one, several)
    jax.tree.map(np.testing.assert_array_equal, sums, theirs)
    assert len({float(step.loss) for step in sums}) == 5


def test_a_step_with_images_of_the_device_is_one_with_the_same_images_of_the_host(run):
    setup, key = set_up(run), jax.random.key(0)
    images, labels = (array.numpy() for array in setup.dataset.arrays("train"))
    rows = next(train_rows(len(labels), run.batch_size, seed=run.seed, augmentation="crop_flip"))
    batch = {"image": by_hand(images, rows), "label": labels[rows["index"]].astype(np.int32)}
    state, sums = setup.steps.train(initial_state(setup, run), shard(batch), key, None)
    ours, (theirs,) = computed(run, [1])
    np.testing.assert_allclose(sums.loss, theirs.loss, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-5), state, ours)


def test_pictures_grow_from_part_to_part_of_a_run(tiny_config, fashion_mnist):
    tiny_config.data.progressive = (8, 12)
    of_run = from_config(tiny_config)
    setup = set_up(of_run)
    assert setup.durations.total == 4
    feed = create_feed(setup, of_run, 0)
    whole = []
    for _ in range(4):
        assert feed.shape == (16, *feed.images().shape[1:])
        whole.append(feed.images())
        feed.next(1, 0.0)
    assert [images.shape[1:] for images in whole] == [(8, 8, 1)] * 2 + [(12, 12, 1)] * 2
    for step in (1, 2, 3):  # resumed
        np.testing.assert_array_equal(
            create_feed(setup, of_run, step).images(), whole[step], strict=True
        )


def by_hand(images, rows, pad=4):
    """Crops and mirrors images one by one."""
    height, width = images.shape[1:3]
    result = []
    for index, mirrored, top, left in zip(
        rows["index"], rows["mirrored"], rows["top"], rows["left"], strict=True
    ):
        padded = np.pad(images[index], ((pad, pad), (pad, pad), (0, 0)))
        crop = padded[top : top + height, left : left + width]
        result.append(crop[:, ::-1] if mirrored else crop)
    return np.stack(result)


@pytest.mark.parametrize("pad", [0, 1, 4])
def test_the_device_crops_and_mirrors_as_the_rows_say(pad):
    images = np.random.default_rng(0).integers(0, 256, (40, 6, 8, 3)).astype(np.uint8)
    rows = next(train_rows(40, 40, seed=1, augmentation="crop_flip", pad=pad))
    for wide in (False, True):  # JAX_ENABLE_X64 makes other integers of Python's
        with jax.enable_x64(wide):
            looked_up = look_up(jnp.asarray(images), rows, pad)
        np.testing.assert_array_equal(looked_up, by_hand(images, rows, pad))


def test_a_call_has_no_more_steps_than_take_a_second(run):
    setup = set_up(run)
    feed = create_feed(setup, run, 0)
    ways = (*[(50, 0.0)] * 3, (50, 7.9), (3, 7.9), (5000, 5000.0))
    assert [feed.next(most, rate).steps for most, rate in ways] == [1, 2, 4, 7, 3, 100]


def test_what_is_not_computed_is_filled_up():
    rows = [{"index": np.arange(16) + 100 * step} for step in range(3)]
    stacked = stack(rows)
    assert stacked["index"].shape == (8, 100, 2)
    np.testing.assert_array_equal(stacked["index"][1, :3], [[2, 3], [102, 103], [202, 203]])
