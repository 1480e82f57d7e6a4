import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from mnv2.ops.platforms import PLAIN, traced_for
from mnv2.preprocess import pixels
from mnv2.preprocess.policies import AUTO_IMAGENET, NAMES, apply, case_of, largest_shift, strengths
from mnv2.preprocess.text import OPERATIONS, parse
from tests.preprocess.test_pixels import photograph

POLICIES = ("rand_augment", "trivial_augment_wide", "auto_augment")

# The names in torchvision, where they differ by more than capitals and underscores.
THEIR_NAMES = {name: name.title().replace("_", "") for name in (*NAMES, "invert")}
THEIR_NAMES["autocontrast"] = "AutoContrast"


def batch(channels, count=24):
    """Small pictures that differ, and a key for each."""
    photo = photograph()
    images = [photo[8 * i : 8 * i + 20, 5 * i : 5 * i + 25, :channels] for i in range(count)]
    return np.stack(images), jax.random.split(jax.random.key(7), count)


def augmented(text, channels, platform):
    """Returns a compiled policy, and what it makes of a batch."""
    policy = parse(text, "test").calls[0]

    @jax.jit
    def compiled(images, keys):
        with traced_for(platform):
            return policy(images, keys)

    return compiled, np.asarray(compiled(*batch(channels)))


CASES = [("rand_augment(2, 20, 'bilinear')", 3), ("trivial_augment_wide(fill=9)", 1)]


@pytest.mark.parametrize(("text", "channels"), CASES)
def test_a_picture_is_changed_by_its_key_alone_and_equally_on_all_platforms(
    text, channels, monkeypatch
):
    images, keys = batch(channels)
    compiled, results = augmented(text, channels, "cpu")
    assert results.shape == images.shape
    assert results.dtype == np.uint8
    order = np.random.default_rng(0).permutation(len(images))
    np.testing.assert_array_equal(compiled(images[order], keys[order]), results[order])
    same = compiled(images[[0] * len(images)], keys)
    assert len({result.tobytes() for result in np.asarray(same)}) > 8
    if channels == 1:  # one after another
        monkeypatch.setattr(pixels, "_LARGE", 0)
    else:
        np.testing.assert_array_equal(augmented(text, channels, PLAIN)[1], results)
    np.testing.assert_array_equal(augmented(text, channels, "tpu")[1], results)


def test_strengths_are_those_of_the_papers():
    assert strengths("rotate", "rand_augment")[9] == pytest.approx(9)  # degrees, of 30
    assert strengths("shear_x", "rand_augment")[30] == pytest.approx(0.3)
    assert strengths("translate_x", "rand_augment")[30] == pytest.approx(150 / 331)
    assert strengths("translate_x", "trivial_augment_wide")[30] == 32
    assert int(strengths("translate_x", "trivial_augment_wide")[15]) == 15  # of a little below 16
    assert strengths("rotate", "trivial_augment_wide")[30] == 135
    assert strengths("color", "trivial_augment_wide")[30] == pytest.approx(0.99)
    assert list(strengths("posterize", "auto_augment")) == [8, 8, 7, 7, 6, 6, 5, 5, 4, 4]
    assert set(strengths("posterize", "trivial_augment_wide")) == {2, 3, 4, 5, 6, 7, 8}
    assert strengths("solarize", "rand_augment")[[0, 30]].tolist() == [255, 0]


def test_the_largest_shift_is_in_pixels():
    def shift(text, side):
        return largest_shift(parse(text, "test").calls[0], side)

    assert shift("trivial_augment_wide", 28) == shift("trivial_augment_wide", 224) == 32
    assert shift("rand_augment(2, 30)", 224) == 101
    assert shift("rand_augment(2, 9)", 28) == 3
    assert shift("auto_augment", 28) == 0


_apply = jax.jit(apply, static_argnums=(2, 3))


def of_case(name, policy, level, sign, picture, interpolation, fill=0):
    """Returns a picture changed by an operation of one strength."""
    one = case_of(policy, name, level, sign, picture.shape[:2], interpolation)
    return np.asarray(_apply(picture, one, interpolation, fill))


@pytest.mark.parametrize("text", ["rand_augment(1, 9)", "trivial_augment_wide", "auto_augment"])
def test_each_operation_and_strength_is_drawn_as_often_as_any_other(text, monkeypatch):
    """The rows of operations that 20,000 keys draw, by chi-squared."""
    drawn = {}

    def apply_nothing(cases, images, rows, *_):
        drawn.update(rows=np.asarray(rows), cases=list(cases))
        return images

    policy = parse(text, "test").calls[0]
    monkeypatch.setattr("mnv2.preprocess.policies._apply", apply_nothing)
    images, keys = (
        jnp.zeros((20000, 1, 1, 1), jnp.uint8),
        jax.random.split(jax.random.key(3), 20000),
    )
    policy(images, keys)
    rows, kinds = drawn["rows"], len(drawn["cases"])
    counts = np.bincount(rows.reshape(-1), minlength=kinds)
    expected = np.full(kinds, rows.size / kinds)
    if policy.name == "auto_augment":
        expected[:] = 0
        for pair in AUTO_IMAGENET:
            for name, odds, level in pair:
                first = drawn["cases"].index(("auto_augment", name, level, 0))
                expected[first : first + 2] += len(keys) / 25 * odds / 2
                expected[0] += len(keys) / 25 * (1 - odds)
    assert not counts[expected == 0].any()
    counts, expected = counts[expected > 0], expected[expected > 0]
    chi = ((counts - expected) ** 2 / expected).sum()
    assert abs(chi - len(counts)) < 4 * np.sqrt(2 * len(counts))


def test_all_fields_of_a_policy_are_checked():
    for name in POLICIES:
        assert OPERATIONS[name].defaults.keys() == OPERATIONS[name].checks.keys()


@pytest.mark.parametrize("name", POLICIES)
def test_operations_and_strengths_are_those_of_torchvision(name):
    """In the environment of the other frameworks; elsewhere the tests above stand for it."""
    autoaugment = pytest.importorskip("torchvision.transforms.autoaugment")
    interpolation = pytest.importorskip("torchvision.transforms").InterpolationMode

    picture = photograph()[100:164, 100:180]
    size, steps = picture.shape[:2], 10 if name == "auto_augment" else 31
    space = {
        "rand_augment": lambda: autoaugment.RandAugment()._augmentation_space(steps, size),
        "trivial_augment_wide": lambda: autoaugment.TrivialAugmentWide()._augmentation_space(steps),
        "auto_augment": lambda: autoaugment.AutoAugment()._augmentation_space(steps, size),
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
                result = of_case(operation, name, level, sign, picture, "bilinear")
                difference = np.abs(result.astype(int) - np.array(expected))
                assert difference.max() <= 1, (operation, level, sign)
    if name == "auto_augment":
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
