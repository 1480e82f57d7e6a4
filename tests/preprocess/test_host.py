"""Views of pictures against tf.image, Pillow and torchvision, whose authors' code they repeat."""

import subprocess
import sys

import numpy as np
import pytest
import scipy.stats
import tensorflow as tf
from PIL import Image

from mnv2.preprocess import host
from mnv2.preprocess.resizing import METHODS, resized, to_uint8
from mnv2.preprocess.text import parse
from mnv2.runtime.errors import UserError

# Its own size, one side of it, smaller, larger, portrait, odd, and very long ones.
SIZES = [
    *((28, 28), (28, 40), (9, 7), (64, 48), (301, 200), (29, 31), (1, 1)),
    *((3, 400), (400, 3), (28, 1000), (20, 36)),
]
TARGETS = [(28, 28), (20, 36)]
CLOSE = 0.05  # grey levels: TensorFlow places pixels in float32, OpenCV in float64
FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


def noise(height, width, channels=3):
    picture = np.random.default_rng(0).integers(0, 256, (height, width, channels), np.uint8)
    picture.flags.writeable = False
    return picture


def smooth(height, width):
    small = np.random.default_rng(0).integers(0, 256, (9, 9, 3), np.uint8)
    return np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))


def view(text, size, channels=0):
    return host.View(parse(text, "view"), size, channels)


def by_tensorflow(picture, size, method="bilinear"):
    return tf.image.resize(picture, size, method).numpy()


def by_pillow(picture, size, method="bilinear"):
    return np.asarray(Image.fromarray(picture).resize(size[::-1], FILTERS[method]))


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("size", SIZES)
def test_without_antialiasing_pixels_are_those_of_tensorflow(size, target):
    picture = noise(*size)
    for values in (picture, picture.astype(np.float32) + np.float32(0.3)):
        for method in ("nearest", "bilinear"):
            ours = view(f"resize(method={method!r})", target)(values)
            assert ours.shape == (*target, 3)
            assert ours.dtype in (values.dtype, np.float32)
            close = CLOSE if method == "bilinear" else 0
            np.testing.assert_allclose(ours, by_tensorflow(values, target, method), 0, close)


@pytest.mark.parametrize("crop", [0.875, 0.9, 0.3, 1.0])
@pytest.mark.parametrize("target", TARGETS)
def test_fit_and_slim_are_those_of_tensorflow(target, crop):
    for picture in (noise(*size) for size in SIZES):
        centre = tf.image.central_crop(picture, crop)
        ours = view(f"central_crop({crop})|center_crop(1)", target)(picture)
        assert ours.shape == (1, 1, 3)
        np.testing.assert_array_equal(
            host.central_crop(picture, target, None, fraction=crop), centre
        )
        grid_of_1 = tf.compat.v1.image.resize_bilinear(centre[None], target, align_corners=False)[0]
        ours = view(host.VIEWS["slim"].format(crop=crop), target)(picture)
        np.testing.assert_allclose(ours, grid_of_1, 0, CLOSE)
        for channels in (0, 1):
            fitted = tf.image.resize(centre, target) if picture.shape[:2] != target else picture
            if channels:
                fitted = tf.image.rgb_to_grayscale(tf.cast(fitted, tf.float32))
            ours = view(f"fit({crop})", target, channels)(picture)
            assert ours.dtype == np.uint8
            np.testing.assert_allclose(ours, fitted, 0, 0.5 + CLOSE)


@pytest.mark.parametrize("size", [*SIZES, (375, 500), (90, 700)])
@pytest.mark.parametrize("method", FILTERS)
def test_with_antialiasing_pixels_are_those_of_pillow(method, size):
    picture = noise(*size)
    antialiased = f"{method}_antialiased"
    expected = by_pillow(picture, (64, 48), method)
    ours = view(f"resize(method={antialiased!r})", (64, 48))(picture)
    np.testing.assert_array_equal(ours, expected)
    not_rounded = resized(picture + np.float32(0.3), (64, 48), antialiased)
    np.testing.assert_array_equal(to_uint8(not_rounded), expected)


@pytest.mark.parametrize("size", [(301, 256), (180, 333), (224, 224), (90, 700), (375, 500)])
@pytest.mark.parametrize(
    ("method", "shorter"), [("bilinear", 256), ("bilinear", 232), ("bicubic", 256)]
)
def test_the_shorter_side_is_resized_and_the_centre_cropped_as_in_pil(method, shorter, size):
    picture = noise(*size)
    whole = by_pillow(picture, tuple(shorter * side // min(size) for side in size), method)
    top, left = (round((side - 224) / 2) for side in whole.shape[:2])
    expected = whole[top : top + 224, left : left + 224]
    for text in (f"resize_shorter(crop={224 / shorter}", f"resize_shorter({shorter}"):
        ours = view(f"{text}, method='{method}_antialiased')|center_crop", (224, 224))(picture)
        np.testing.assert_array_equal(ours, expected)


@pytest.mark.parametrize("size", [(375, 500), (224, 200), (256, 256), (70, 333)])
@pytest.mark.parametrize("method", FILTERS)
def test_evaluation_and_crops_are_those_of_torchvision(method, size):
    pytest.importorskip("torchvision")
    from torchvision import transforms

    picture = noise(*size)
    image = Image.fromarray(picture)
    mode = transforms.InterpolationMode(method)
    theirs = transforms.CenterCrop(224)(transforms.Resize(256, mode)(image))
    ours = view(host.VIEWS[method].format(crop=0.875), (224, 224))(picture)
    np.testing.assert_array_equal(ours, theirs)
    box = (7, 9, 50, 60)  # top, left, height, width
    theirs = transforms.functional.resized_crop(image, *box, [224, 224], mode)
    ours = resized(picture[7:57, 9:69], (224, 224), f"{method}_antialiased")
    np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("target", [(96, 192), (192, 96)])
@pytest.mark.parametrize("size", [(120, 120), (60, 300), (300, 60), (48, 96)])
def test_a_size_that_is_not_square_is_covered_and_keeps_the_proportions(size, target):
    picture = smooth(*size)
    scale = max(int(side / 0.875) / own for side, own in zip(target, size, strict=True))
    whole = by_pillow(picture, tuple(int(scale * own + 1e-9) for own in size))
    top, left = (round((own - side) / 2) for own, side in zip(whole.shape, target, strict=False))
    expected = whole[top : top + target[0], left : left + target[1]]
    ours = view("resize_shorter|center_crop", target)(picture)
    np.testing.assert_array_equal(ours, expected)


def test_of_a_very_long_picture_only_the_centre_is_computed(monkeypatch):
    for method in METHODS:
        one = view(f"resize_shorter(method={method!r})|center_crop", (64, 64))
        assert one(noise(2, 60000)).shape == one(noise(60000, 2)).shape == (64, 64, 3)
        for size in ((40, 900), (900, 40)):
            whole = one(smooth(*size)).astype(np.float32)
            with monkeypatch.context() as patch:
                patch.setattr(host, "LONGEST", 6)
                assert np.abs(one(smooth(*size)) - whole).max() <= 1, (size, method)


def test_pictures_of_the_right_size_are_unchanged():
    picture = noise(28, 28)
    for text in (*host.VIEWS.values(), "", *(f"resize(28, method={name!r})" for name in METHODS)):
        if "crop" not in text or "fit" in text:
            np.testing.assert_array_equal(view(text.format(crop=0.5), (28, 28))(picture), picture)
    gray = np.repeat(picture[..., :1], 3, -1)  # as a gray file is decoded
    for text in ("fit", ""):
        ours = to_uint8(view(text, (28, 28), 1)(gray))
        np.testing.assert_array_equal(ours, picture[..., :1])


@pytest.mark.parametrize(
    ("size", "same_as"),
    [((128, 128), "bilinear"), ((130, 64), "bilinear_antialiased"), ((9, 9), "bilinear")],
)
def test_a_users_picture_is_antialiased_if_it_shrinks_to_less_than_half(size, same_as):
    picture = noise(*size)
    ours = view("resize(method='keras')", (64, 64))(picture)
    np.testing.assert_array_equal(ours, resized(picture, (64, 64), same_as))


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("method", METHODS)
def test_each_channel_is_resized_alone(method, channels):
    picture = noise(37, 50, channels)
    alone = [resized(picture[..., i : i + 1], (20, 24), method) for i in range(channels)]
    ours = resized(picture, (20, 24), method)
    np.testing.assert_allclose(ours, np.concatenate(alone, -1), 0, 1e-3)


def test_gray_and_colour_are_converted_as_by_tensorflow():
    picture = noise(20, 30)
    luminance = tf.image.rgb_to_grayscale(tf.cast(picture, tf.float32))
    np.testing.assert_allclose(host.to_channels(picture, 1), luminance, 0, 1e-4)
    gray = picture[..., :1]
    np.testing.assert_array_equal(
        host.to_channels(gray, 3), tf.image.grayscale_to_rgb(tf.constant(gray))
    )
    assert host.to_channels(picture, 3) is host.to_channels(picture, 0) is picture
    np.testing.assert_array_equal(
        to_uint8(np.float32([-3, 0.5, 1.5, 254.7, 300])), [0, 0, 2, 255, 255]
    )


def test_without_an_operation_a_picture_is_stretched():
    picture = noise(50, 60)
    for text in ("", "resize"):
        expected = by_tensorflow(picture, (28, 32))
        np.testing.assert_allclose(view(text, (28, 32))(picture), expected, 0, CLOSE)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("", (20, 36)),
        ("fit", (20, 36)),
        ("resize(48)", (48, 48)),
        ("resize(48)|center_crop", (20, 36)),
        ("resize(48)|center_crop(40)", (40, 40)),
        ("inception_crop(size=24)", (24, 24)),
        ("resized_crop", (20, 36)),
    ],
)
def test_the_size_of_the_pictures_is_known_before(text, size):
    of_text = view(text, (20, 36))
    assert of_text.size == size
    seen = of_text(noise(60, 70), np.random.default_rng(0))
    assert seen.shape == (*size, 3)


def parts_of_tensorflow(shape, area, aspect, count):
    """Draws (top, left, height, width) with the kernel that slim uses: (count 4)."""

    def draw(number):
        begin, size, _ = tf.image.stateless_sample_distorted_bounding_box(
            tf.constant([*shape, 3]),
            tf.constant([[[0.0, 0.0, 1.0, 1.0]]]),
            [number, 0],
            min_object_covered=host.COVERED,
            aspect_ratio_range=aspect,
            area_range=area,
            max_attempts=100,
        )
        return tf.concat([begin[:2], size[:2]], 0)

    draws = tf.data.Dataset.range(count).map(draw).batch(count)
    return draws.get_single_element().numpy()


def drawn(draw, shape, area, aspect, count):
    random = np.random.default_rng(0)
    parts = []
    for _ in range(count):
        rows, columns = draw((*shape, 3), area, aspect, random)
        top, bottom, _ = rows.indices(shape[0])
        left, right, _ = columns.indices(shape[1])
        parts.append((top, left, bottom - top, right - left))
    return np.array(parts)


def assert_alike(ours, theirs):
    """Compares what is drawn: height, width, area, aspect, and the position in the free space."""
    for measure in (
        *(lambda parts, i=i: parts[:, i] for i in range(4)),
        lambda parts: parts[:, 2] * parts[:, 3],
        lambda parts: parts[:, 3] / parts[:, 2],
    ):
        found = scipy.stats.ks_2samp(measure(ours), measure(theirs))
        assert found.statistic < 2 / len(ours) ** 0.5  # 1.95 is exceeded once in a thousand times


@pytest.mark.parametrize("shape", [(375, 500), (40, 100), (9, 7)])
@pytest.mark.parametrize(
    ("area", "aspect"), [((0.05, 1.0), (3 / 4, 4 / 3)), ((0.5, 0.6), (0.5, 3.0))]
)
def test_random_crops_of_slim_are_distributed_as_by_tensorflow(shape, area, aspect):
    ours = drawn(host._inception_part, shape, area, aspect, 3000)
    assert_alike(ours, parts_of_tensorflow(shape, area, aspect, 3000))


@pytest.mark.parametrize("shape", [(375, 500), (500, 100)])
def test_random_crops_are_distributed_as_by_torchvision(shape):
    torch = pytest.importorskip("torch")
    pytest.importorskip("torchvision")
    from torchvision import transforms

    torch.manual_seed(0)
    image = Image.fromarray(noise(*shape))
    area, aspect = (0.08, 1.0), (3 / 4, 4 / 3)
    theirs = [transforms.RandomResizedCrop.get_params(image, area, aspect) for _ in range(3000)]
    ours = drawn(host._resized_crop_part, shape, area, aspect, 3000)
    assert_alike(ours, np.array(theirs))


def test_the_logarithm_of_the_aspect_of_a_random_crop_is_uniform():
    parts = drawn(host._resized_crop_part, (300, 300), (0.1, 0.2), (1 / 4, 4), 1000)
    aspects = np.log(parts[:, 3] / parts[:, 2])
    found = scipy.stats.kstest(aspects, scipy.stats.uniform(-np.log(4), 2 * np.log(4)).cdf)
    assert found.statistic < 2 / len(parts) ** 0.5


@pytest.mark.parametrize("draw", [host._inception_part, host._resized_crop_part])
@pytest.mark.parametrize("shape", [(1, 1), (1, 50), (50, 1), (3, 400), (31, 29), (200, 300)])
def test_random_crops_lie_within_the_picture_and_in_the_range(draw, shape):
    for area, aspect in (((0.25, 0.5), (1.0, 1.0)), ((0.9, 1.0), (0.02, 90.0))):
        parts = drawn(draw, shape, area, aspect, 200)
        assert (parts[:, :2] >= 0).all()
        assert (parts[:, 2:] >= 1).all()
        assert (parts[:, :2] + parts[:, 2:] <= shape).all()
    if min(shape) > 20:
        parts = drawn(draw, shape, (0.25, 0.5), (1.0, 1.0), 200)
        np.testing.assert_array_equal(parts[:, 2], parts[:, 3])
        shares = parts[:, 2] * parts[:, 3] / np.prod(shape)
        assert shares.min() > 0.23
        assert shares.max() < 0.53


@pytest.mark.parametrize("text", ["inception_crop", "resized_crop"])
def test_a_random_crop_depends_only_on_its_random_numbers(text):
    picture = noise(100, 120)
    one, same, other = (
        view(text, (28, 28))(picture, np.random.default_rng(seed)) for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(one, same)
    assert (one != other).any()
    with pytest.raises(UserError, match=f"{text} is random"):
        view(text, (28, 28))(picture)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("resize(method='bilinaer')", "did you mean 'bilinear'"),
        ("fit(0)", "crop of fit must be greater than 0 and at most 1"),
        ("inception_crop(0.5, 0.2)", "smallest of inception_crop must not exceed largest"),
        (
            "resized_crop(aspect=(2, 1))",
            "aspect of resized_crop must have the smaller number first",
        ),
        ("center_crop(40)", "center_crop cannot cut 40 x 40 out of a picture of 30 x 50"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(text, message):
    with pytest.raises(UserError, match=message):
        view(text, (28, 28))(noise(30, 50))


def test_views_need_neither_tensorflow_nor_jax():
    code = (
        "import sys, mnv2.preprocess.host; print(sorted({'tensorflow', 'jax'} & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
