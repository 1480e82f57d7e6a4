import numpy as np
import pytest
import tensorflow as tf

from mnv2.data.augment import POLICIES, Policy, augment
from mnv2.data.augment.policies import AUTO_IMAGENET, OPERATIONS, apply, strengths
from tests.data.augment.test_operations import photograph

# The names in torchvision, where they differ by more than capitals and underscores.
THEIR_NAMES = {name: name.title().replace("_", "") for name in OPERATIONS}
THEIR_NAMES["autocontrast"] = "AutoContrast"


@pytest.mark.parametrize(
    ("name", "channels"),
    [("none", 3), ("random", 3), ("trivial_wide", 1), ("auto_imagenet", 3)],
)
def test_a_policy_is_a_function_of_the_seed_and_keeps_shape_and_type(name, channels):
    picture = tf.constant(photograph()[200:240, 200:250, :channels])
    policy = Policy(name, operations=2, strength=20)
    of_seed = tf.function(lambda seed: augment(picture, seed, policy))
    results = [of_seed(tf.constant([7, number])).numpy() for number in range(20)]
    assert all(result.shape == picture.shape and result.dtype == np.uint8 for result in results)
    np.testing.assert_array_equal(of_seed(tf.constant([7, 3])), results[3])
    different = len({result.tobytes() for result in results})
    assert different == 1 if name == "none" else different > 8


def test_strengths_are_those_of_the_papers():
    assert strengths("rotate", "random")[9] == pytest.approx(9)  # degrees, of 30
    assert strengths("shear_x", "random")[30] == pytest.approx(0.3)
    assert strengths("translate_x", "random")[30] == pytest.approx(150 / 331)
    assert strengths("translate_x", "trivial_wide")[30] == 32
    assert strengths("rotate", "trivial_wide")[30] == 135
    assert strengths("color", "trivial_wide")[30] == pytest.approx(0.99)
    assert list(strengths("posterize", "auto_imagenet")) == [8, 8, 7, 7, 6, 6, 5, 5, 4, 4]
    assert set(strengths("posterize", "trivial_wide")) == {2, 3, 4, 5, 6, 7, 8}
    assert strengths("solarize", "random")[[0, 30]].tolist() == [255, 0]


def test_what_comes_from_outside_of_the_picture_has_the_fill_value():
    white = tf.fill((32, 32, 3), tf.constant(255, tf.uint8))
    policy = Policy("trivial_wide", fill=7)
    moved = apply("translate_x", white, tf.constant(15), tf.constant(1), policy).numpy()
    assert (moved[:, :15] == 7).all()
    assert (moved[:, 15:] == 255).all()


@pytest.mark.parametrize("name", POLICIES[1:])
def test_operations_and_strengths_are_those_of_torchvision(name):
    """In the environment of the other frameworks; elsewhere the tests above stand for it."""
    autoaugment = pytest.importorskip("torchvision.transforms.autoaugment")
    interpolation = pytest.importorskip("torchvision.transforms").InterpolationMode
    from PIL import Image

    picture = photograph()[100:164, 100:180]
    size, steps = picture.shape[:2], 10 if name == "auto_imagenet" else 31
    space = {
        "random": lambda: autoaugment.RandAugment()._augmentation_space(steps, size),
        "trivial_wide": lambda: autoaugment.TrivialAugmentWide()._augmentation_space(steps),
        "auto_imagenet": lambda: autoaugment.AutoAugment()._augmentation_space(steps, size),
    }[name]()
    for operation, theirs in THEIR_NAMES.items():
        if theirs not in space:
            continue
        magnitudes, signed = space[theirs]
        for level in (0, steps // 2, steps - 1):
            for sign in (0, 1):
                strength = float(magnitudes[level]) if magnitudes.ndim else 0.0
                expected = autoaugment._apply_op(
                    Image.fromarray(picture),
                    theirs,
                    -strength if signed and not sign else strength,
                    interpolation=interpolation.BILINEAR,
                    fill=None,
                )
                policy = Policy(name, interpolation="bilinear")
                numbers = (tf.constant(level), tf.constant(sign))
                result = apply(operation, tf.constant(picture), *numbers, policy)
                difference = np.abs(result.numpy().astype(int) - np.array(expected))
                assert difference.max() <= 1, (operation, level, sign)
    if name == "auto_imagenet":
        ours = [
            tuple((THEIR_NAMES[operation], odds) for operation, odds, _ in pair)
            for pair in AUTO_IMAGENET
        ]
        theirs = autoaugment.AutoAugment().policies
        assert ours == [tuple(one[:2] for one in pair) for pair in theirs]
        assert all(
            their_level in (None, level)
            for pair, their_pair in zip(AUTO_IMAGENET, theirs, strict=True)
            for (_, _, level), (_, _, their_level) in zip(pair, their_pair, strict=True)
        )
