import jax
import numpy as np
import pytest

from mnv2 import data
from mnv2.preprocess.device import augment
from mnv2.training.config import from_config
from mnv2.training.feed import create_feed, stack
from mnv2.training.setup import device_pipeline, initial_state, set_up
from mnv2.training.step import parallel, unstack


@pytest.fixture
def run(tiny_config, fashion_mnist):
    """A run whose batches are augmented on the devices, with dropout and averages."""
    tiny_config.data.train = "pad_crop|flip"
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


@pytest.mark.parametrize("first_step", [0, 3743])
def test_batches_are_the_same_from_host_and_device_and_for_any_number_of_devices(
    tiny_config, fashion_mnist, first_step, monkeypatch
):
    """To the last bit, also when a run is resumed; a batch has 16 rows and an epoch 3,743 steps."""
    tiny_config.data.train = "pad_crop(2)|flip|erase(0.5)|label_noise(0.3)"
    tiny_config.duration = "2 epochs"
    of_run = from_config(tiny_config)
    setup = set_up(of_run)
    pipeline = device_pipeline(of_run, setup.preprocess.mean, 4, 59_900)
    from_device = create_feed(setup, of_run, first_step)
    monkeypatch.setattr(data, "fits_on_device", lambda *_: False)
    from_host = create_feed(setup, of_run, first_step)
    (on_host, key, _), on_device = from_host.next(1, 0.0).arguments, from_device.next(1, 0.0)
    images, labels, rows = (jax.device_get(x) for x in on_device.arguments[:3])

    def of_batch(batch):
        return augment(pipeline, batch["image"], batch["label"], key, batch, 10)

    looked_up = {name: values[:, 0] for name, values in rows.items()}  # of the first step
    for name, of_set in (("image", images), ("label", labels)):
        looked_up[name] = of_set[looked_up["index"]]
    jax.tree.map(np.testing.assert_array_equal, looked_up, dict(on_host))
    on_one = {name: np.asarray(x).reshape(1, 16, *x.shape[2:]) for name, x in on_host.items()}
    expected = parallel(of_batch, devices=tuple(jax.devices()[:1]))(on_one)
    for ours, others in zip(parallel(of_batch)(on_host), expected, strict=True):
        np.testing.assert_array_equal(np.concatenate(ours), others[0])
    assert not np.array_equal(expected[0], on_one["image"])
    assert 0 < np.sum(expected[1] != on_one["label"]) < 12


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
