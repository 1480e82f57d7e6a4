import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tensorflow as tf

from configs import v2_ablation
from mnv2.runtime.errors import UserError, call
from mnv2.training.config import Optimization
from mnv2.training.optimizer import create_optimizer, create_schedule, weight_decays


@pytest.fixture
def settings():
    return v2_ablation.get_config().optimization


def of(settings):
    return Optimization(**settings.to_dict())


def schedule_of(settings, total_steps=100):
    return create_schedule(of(settings), total_steps=total_steps, examples=105, batch_size=10)


def test_rmsprop_is_tensorflows(settings):
    settings.optimizer = "rmsprop_tf(decay=0.9, momentum=0.9, eps=1.0)"
    settings.weight_decay = 0.0
    ours = create_optimizer(of(settings), optax.constant_schedule(0.05))
    theirs = tf.compat.v1.train.RMSPropOptimizer(0.05, decay=0.9, momentum=0.9, epsilon=1.0)
    random = np.random.default_rng(0)
    params = {"kernel": jnp.asarray(random.normal(size=5), jnp.float32)}
    variable = tf.Variable(np.asarray(params["kernel"]))
    state = ours.init(params)
    for _ in range(20):
        gradient = random.normal(size=5).astype(np.float32)
        updates, state = ours.update({"kernel": jnp.asarray(gradient)}, state, params)
        params = optax.apply_updates(params, updates)
        theirs.apply_gradients([(tf.constant(gradient), variable)])
    np.testing.assert_allclose(params["kernel"], variable.numpy(), rtol=1e-5)


@pytest.mark.parametrize("optimizer", ["sgd", "rmsprop_tf(eps=0.1)"])
def test_weight_decay_is_an_l2_term_of_the_loss(settings, optimizer):
    settings.optimizer, settings.weight_decay = optimizer, 0.1
    params = {"kernel": jnp.asarray([1.0, -2.0]), "bias": jnp.asarray([3.0])}
    gradients = {"kernel": jnp.asarray([0.3, 0.4]), "bias": jnp.asarray([0.5])}
    decaying = create_optimizer(of(settings), optax.constant_schedule(0.1))
    updates, _ = decaying.update(gradients, decaying.init(params), params)
    settings.weight_decay = 0.0
    plain = create_optimizer(of(settings), optax.constant_schedule(0.1))
    with_l2 = {**gradients, "kernel": gradients["kernel"] + 0.1 * params["kernel"]}
    expected, _ = plain.update(with_l2, plain.init(params), params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), updates, expected)


def test_a_parameter_decays_as_its_path_says(settings):
    params = {"block_0": {"depthwise": {"kernel": 0, "bn": {"scale": 0}}, "expand": {"kernel": 0}}}
    settings.weight_decay, settings.weight_decay_on = 0.1, "(expand|project).*kernel"
    assert weight_decays(params, of(settings)) == {
        "block_0": {"depthwise": {"kernel": 0.0, "bn": {"scale": 0.0}}, "expand": {"kernel": 0.1}}
    }


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize(("norm", "decays"), [(None, 0.1), (0.0, 0.0), (0.3, 0.3)])
def test_batch_norm_may_have_a_weight_decay_of_its_own(settings, optimizer, norm, decays):
    settings.optimizer = optimizer
    settings.update(weight_decay=0.1, weight_decay_on=".")
    settings.norm_weight_decay = norm
    one = jnp.asarray([1.0])
    params = {"a": {"bn": {"scale": one, "bias": one}, "kernel": one}, "classifier": {"bias": one}}
    optimizer = create_optimizer(of(settings), optax.constant_schedule(1.0))
    zero = jax.tree.map(jnp.zeros_like, params)
    updates, _ = optimizer.update(zero, optimizer.init(params), params)
    found = (*(updates["a"]["bn"][name] for name in ("scale", "bias")),
             updates["classifier"]["bias"], updates["a"]["kernel"])  # fmt: skip
    assert [-float(update[0]) for update in found] == pytest.approx([decays, decays, 0.1, 0.1])


def test_the_papers_schedule_falls_in_stairs_of_one_epoch(settings):
    settings.schedule, settings.warmup, settings.learning_rate = "exponential", "0 steps", 0.045
    schedule = schedule_of(settings)
    rates = [float(schedule(step)) for step in (0, 9, 10, 19, 20)]
    expected = [0.045, 0.045, 0.045 * 0.98, 0.045 * 0.98, 0.045 * 0.98**2]
    np.testing.assert_allclose(rates, expected, rtol=1e-5)


def test_cosine_rises_to_its_peak_and_ends_at_zero(settings):
    settings.warmup, settings.learning_rate = "1 epochs", 0.4
    schedule = schedule_of(settings)
    np.testing.assert_allclose(
        [float(schedule(step)) for step in (0, 5, 10, 55, 100)], [0, 0.2, 0.4, 0.2, 0], atol=1e-6
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sdg", "unknown optimization.optimizer 'sdg': did you mean 'sgd'"),
        ("sgd(momentun=0.9)", "unknown argument of sgd in .* 'momentun': did you mean 'momentum'"),
        ("adamw(weight_decay=0.1)", "set optimization.weight_decay instead of weight_decay"),
        ("lbfgs", "lbfgs cannot be used: training gives an optimiser gradients and parameters"),
        ("adam(b1='high')", "cannot be used"),
    ],
)
def test_an_optimizer_that_cannot_be_used_is_refused(settings, text, message):
    settings.optimizer = text
    with pytest.raises(UserError, match=message):
        create_optimizer(of(settings), optax.constant_schedule(0.1))


@pytest.mark.parametrize("text", ["adam", "lion(b1=0.8)", "adamw(b2=0.95)", "sgd", "rmsprop"])
def test_any_optimizer_of_optax_is_that_of_optax(settings, text):
    settings.optimizer, settings.weight_decay = text, 0.0
    name, arguments = call("optimizer", text)
    theirs = getattr(optax, name)(0.1, **arguments)
    ours = create_optimizer(of(settings), optax.constant_schedule(0.1))
    params = {"kernel": jnp.asarray([1.0, -2.0])}
    gradients = {"kernel": jnp.asarray([0.3, 0.4])}
    more = {} if name != "lion" else {"weight_decay": 0.0}
    theirs = getattr(optax, name)(0.1, **arguments, **more)
    states = ours.init(params), theirs.init(params)
    for optimizer, state in zip((ours, theirs), states, strict=True):
        updates, _ = optimizer.update(gradients, state, params)
        if optimizer is ours:
            found = updates["kernel"]
    expected = updates["kernel"] if name != "adamw" else updates["kernel"] + 1e-5 * params["kernel"]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_a_schedule_that_is_unknown_is_refused(settings):
    settings.schedule = "cosin"
    with pytest.raises(UserError, match="unknown schedule 'cosin': did you mean 'cosine'"):
        schedule_of(settings)


def test_decoupled_weight_decay_may_differ_between_kernels_and_norms(settings):
    settings.optimizer = "adamw"
    settings.update(weight_decay=0.1, weight_decay_on="kernel", norm_weight_decay=0.3)
    params = {"a": {"bn": {"scale": jnp.ones(1)}, "kernel": jnp.ones(1), "bias": jnp.ones(1)}}
    optimizer = create_optimizer(of(settings), optax.constant_schedule(1.0))
    zero = jax.tree.map(jnp.zeros_like, params)
    updates, _ = optimizer.update(zero, optimizer.init(params), params)
    assert float(updates["a"]["bn"]["scale"][0]) == pytest.approx(-0.3)
    assert float(updates["a"]["kernel"][0]) == pytest.approx(-0.1)
    assert float(updates["a"]["bias"][0]) == 0.0


@pytest.mark.parametrize("backbone_rate", [1.0, 0.1])
def test_gradients_are_clipped_by_the_norm_of_all_of_them(settings, backbone_rate):
    settings.optimizer, settings.weight_decay = "sgd", 0.0
    with settings.unlocked():
        settings.backbone_rate = backbone_rate
    settings.clip = 2.0
    params = {"stem": jnp.zeros(2), "classifier": jnp.zeros(2)}
    optimizer = create_optimizer(of(settings), optax.constant_schedule(1.0))
    for size, factor in ((1.0, 1.0), (3.0, 0.4)):  # norms of 5/3 and 5
        gradients = {
            "stem": jnp.asarray([size, 0.0]),
            "classifier": jnp.asarray([0.0, size * 4 / 3]),
        }
        updates, _ = optimizer.update(gradients, optimizer.init(params), params)
        np.testing.assert_allclose(updates["stem"][0], -factor * size * backbone_rate, rtol=1e-6)
        np.testing.assert_allclose(updates["classifier"][1], -factor * size * 4 / 3, rtol=1e-6)


def test_a_rate_that_changes_once_per_epoch_is_that_of_the_epochs_first_step(settings):
    settings.warmup, settings.warmup_from, settings.learning_rate = "2 epochs", 0.01, 1.0
    smooth = schedule_of(settings)
    settings.rate_every = "1 epochs"  # 10 steps
    stairs = schedule_of(settings)
    assert float(smooth(0)) == pytest.approx(0.01)
    assert float(stairs(10)) == pytest.approx(0.505)  # half of the way from 0.01 to 1
    for step in range(100):
        assert float(stairs(step)) == pytest.approx(float(smooth(step // 10 * 10)))


def test_the_schedule_is_that_of_pytorchs_recipes(settings):
    """torchvision: LinearLR for the warm-up, then CosineAnnealingLR, stepped once per epoch."""
    settings.warmup, settings.warmup_from, settings.learning_rate = "2 epochs", 0.01, 0.5
    settings.rate_every, settings.schedule = "1 epochs", "cosine"
    stairs = schedule_of(settings)
    theirs = [0.5 * (0.01 + 0.99 * epoch / 2) for epoch in range(2)]
    theirs += [0.25 * (1 + np.cos(np.pi * epoch / 8)) for epoch in range(8)]
    np.testing.assert_allclose(
        [float(stairs(10 * epoch)) for epoch in range(10)], theirs, rtol=1e-5
    )
