"""Every picture is decoded to its colours, and training and prediction see the same pixels."""

import importlib
import io
import types
import warnings

import numpy as np
import pytest
import tensorflow as tf
from PIL import ExifTags, Image, ImageCms, ImageOps

from mnv2.data import decoding, open_dataset
from mnv2.data.base import decoded
from mnv2.pretrained import Preprocessing
from mnv2.runtime.errors import UserError
from tests.data.pictures import encoded, gradient
from tests.views import eval_view_of

predict = importlib.import_module("mnv2.predict")  # mnv2.predict is the function

FORMATS = ("PNG", "JPEG", "GIF", "BMP", "DIB", "TIFF", "WEBP", "AVIF", "JPEG2000", "PPM", "MPO")
COLOURED = ("P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "HSV")
REFUSED = ("F", "I")  # what is white is unclear


def to_lab(picture):
    srgb, lab = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    return ImageCms.applyTransform(picture, ImageCms.buildTransform(srgb, lab, "RGB", "LAB"))


PICTURE = Image.fromarray(gradient())
GRAY = np.asarray(PICTURE.convert("L"))
PALETTE = PICTURE.quantize(200)
SIXTEEN_BITS = GRAY.astype(np.uint16) * 256 + 200  # rounding would give another high byte
MODES = {
    **{mode: PICTURE.convert(mode) for mode in ("1", "L", "LA", "RGB", "CMYK", "YCbCr", "HSV")},
    "P": PALETTE,
    "PA": PALETTE.convert("PA"),
    "RGBA": Image.fromarray(np.dstack([gradient(), GRAY])),  # from transparent to opaque
    "LAB": to_lab(PICTURE),
    "I;16": Image.fromarray(SIXTEEN_BITS),
    "I;16B": Image.frombytes("I;16B", (60, 40), SIXTEEN_BITS.astype(">u2").tobytes()),
    "I": Image.fromarray(SIXTEEN_BITS.astype(np.int32)),
    "F": Image.fromarray(GRAY.astype(np.float32) / 255),
}


def written_by_pillow():
    """Returns {file name: content} for each format and mode that Pillow writes without loss."""
    options = {"WEBP": {"lossless": True, "exact": True}, "JPEG": {"quality": 95}}
    files = {}
    for kind in FORMATS:
        for mode, picture in MODES.items():
            # Pillow itself clips these modes when it writes these formats.
            if mode[0] in "IF" and kind in ("GIF", "WEBP", "AVIF", "JPEG2000"):
                continue
            try:
                files[f"{kind}.{mode}.x"] = encoded(picture, kind, **options.get(kind, {}))
            except (OSError, KeyError, ValueError):
                continue
    return files


def test_training_and_prediction_see_the_colours_of_every_mode_in_every_format(
    tmp_path, monkeypatch
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    files = written_by_pillow()
    assert len(files) > 60
    for split in ("train", "test"):
        for label in ("one", "two"):
            (tmp_path / "pictures" / split / label).mkdir(parents=True)
            (tmp_path / "pictures" / split / label / "plain.png").write_bytes(
                encoded(PICTURE, "png")
            )
    place = tmp_path / "pictures/train/one"
    for name, content in files.items():
        (place / name).write_bytes(content)
        if decoding.format_of(content) is None:  # such as DIB, a BMP without its first bytes
            with pytest.raises(UserError, match="no picture: it starts like none of JPEG, PNG"):
                predict.read_picture(place / name)
            (place / name).unlink()
        elif name.split(".")[1] in REFUSED and "PPM.I." not in name:
            with pytest.raises(UserError, match=r"its pixels are (floating|integers of 32 bits)"):
                predict.read_picture(place / name)
            assert "what is white is unclear" in decoding_error(content)
            (place / name).unlink()
    dataset = open_dataset(f"folder:{tmp_path / 'pictures'}")
    pairs = dataset.encoded("train").map(lambda x: (x["path"], dataset.decode(x)))
    seen = 0
    for path, trained in pairs.as_numpy_iterator():
        name = path.decode().rpartition("/")[2]
        predicted = predict.read_picture(place / name)
        np.testing.assert_array_equal(trained, predicted, err_msg=name)
        mode = name.split(".")[1]
        expected = gradient() if mode in (*COLOURED, "png") else np.stack([GRAY] * 3, axis=-1)
        if mode == "1":
            expected = np.asarray(PICTURE.convert("1").convert("RGB"))
        assert predicted.shape == expected.shape, name
        assert np.abs(predicted.astype(int) - expected).mean() < 5, name
        seen += 1
    assert seen > 50


def decoding_error(content):
    with pytest.raises(UserError) as raised:
        decoding.decode_picture(content)
    return str(raised.value)


def few_colours(count, **options):
    return encoded(PICTURE.quantize(count), **options)


@pytest.mark.parametrize(
    "content",
    [
        few_colours(2, kind="bmp"),
        few_colours(16, kind="bmp"),
        few_colours(250, kind="bmp"),
        few_colours(16, kind="png", bits=4),
        few_colours(16, kind="png", transparency=3),
        few_colours(16, kind="png", transparency=bytes(range(0, 160, 10))),
        few_colours(16, kind="gif", transparency=3),
        encoded(PICTURE.quantize(9), "gif", save_all=True, append_images=[PICTURE.rotate(180)]),
        encoded(PICTURE, "png", transparency=(0, 0, 90)),
        encoded(PICTURE.convert("L"), "png", transparency=10),
        encoded(PICTURE, "tiff", compression="tiff_lzw"),
        encoded(PICTURE, "webp", lossless=True),
    ],
)
def test_palettes_and_transparent_colours_keep_their_colours(content):
    with warnings.catch_warnings(action="ignore"):
        theirs = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
    np.testing.assert_array_equal(decoding.decode_picture(content), theirs)


def test_sixteen_bits_become_their_high_byte_in_every_format():
    for kind in ("png", "tiff", "ppm"):
        seen = decoding.decode_picture(encoded(MODES["I;16"], kind))
        np.testing.assert_array_equal(seen, np.stack([GRAY] * 3, axis=-1))
    white_is_zero = encoded(Image.fromarray(65535 - SIXTEEN_BITS), "tiff", tiffinfo={262: 0})
    np.testing.assert_array_equal(decoding.decode_picture(white_is_zero)[..., 0], GRAY)


def test_every_orientation_is_turned_upright_in_every_format_that_has_one():
    graph = tf.function(
        lambda content: decoded(decoding.decode_picture, content)
    ).get_concrete_function(tf.TensorSpec((), tf.string))
    for kind, options in (("jpeg", {"quality": 95}), ("png", {}), ("webp", {"lossless": True})):
        for held in range(1, 9):
            exif = Image.Exif()
            exif[ExifTags.Base.Orientation] = held
            content = encoded(PICTURE, kind, exif=exif, **options)
            theirs = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(content))))
            ours = decoding.decode_picture(content)
            np.testing.assert_array_equal(ours, theirs)
            in_graph = graph(tf.constant(content))
            np.testing.assert_array_equal(in_graph, ours)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "it is empty"),
        (b"not a picture", "it is no picture: it starts like none of JPEG, PNG, BMP, GIF, TIFF"),
        (encoded(PICTURE, "jpeg")[:300], "it is a damaged or unusual JPEG: Truncated File Read"),
        (encoded(PICTURE, "jpeg")[:700] + b"\xff\xd8", "JPEG: broken data stream"),
        (encoded(PICTURE, "png")[:100], "it is a damaged or unusual PNG: "),
        (encoded(PICTURE, "tiff")[:500], "it is a damaged or unusual TIFF: "),
        (encoded(PICTURE, "bmp")[:300], "it is a damaged or unusual BMP: image file is truncated"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "in the format HEIC: convert it to JPEG or PNG"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "in the format JPEG XL: convert it to JPEG or PNG"),
        (b"<?xml version='1.0'?>\n<svg/>", "in the format SVG: convert it to JPEG or PNG"),
    ],
    ids=[
        "empty",
        "text",
        "jpeg",
        "jpeg into which another begins",
        "png",
        "tiff",
        "bmp",
        "heic",
        "jxl",
        "svg",
    ],
)
def test_what_cannot_be_read_is_named(content, message):
    assert message in decoding_error(content)
    assert "\n" not in decoding_error(content)


def test_a_network_for_gray_gets_the_same_gray_as_in_training():
    gray_network = types.SimpleNamespace(
        preprocess=Preprocessing(),
        image_size=(28, 28),
        channels=1,
        probabilities=lambda views: views.reshape(1, -1),
    )
    ((seen,),) = predict.predictions(gray_network, iter([("a.png", gradient())]), 1)
    resized = eval_view_of()(gradient())
    np.testing.assert_array_equal(seen.probabilities, resized.ravel())
