"""Odd pictures in a folder: each is decoded right, or named."""

import io

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image, ImageOps

from mnv2.data import folder, open_dataset
from mnv2.runtime.errors import UserError


def gradient(height=40, width=60):
    """A picture whose corners differ."""
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([255 * x / width, 255 * y / height, 0 * x + 90], axis=-1).astype(np.uint8)


def encoded(picture, kind, **options):
    content = io.BytesIO()
    picture.save(content, kind, **options)
    return content.getvalue()


def rotated(orientation):
    exif = Image.Exif()
    exif[folder.ExifTags.Base.Orientation] = orientation
    return encoded(Image.fromarray(gradient()), "jpeg", exif=exif, quality=95)


PICTURE = Image.fromarray(gradient())
JPEG = encoded(PICTURE, "jpeg", quality=95)
SIXTEEN_BITS = Image.fromarray(gradient()[..., 0].astype(np.uint16) * 257)
GOOD = {
    "plain.jpg": JPEG,
    "gray.jpg": encoded(PICTURE.convert("L"), "jpeg", quality=95),
    "cmyk.jpg": encoded(PICTURE.convert("CMYK"), "jpeg", quality=95),
    "progressive.jpg": encoded(PICTURE, "jpeg", progressive=True, quality=95),
    "alpha.png": encoded(PICTURE.convert("RGBA"), "png"),
    "palette.png": encoded(PICTURE.convert("P"), "png"),
    "sixteen_bits.png": encoded(SIXTEEN_BITS, "png"),
    "animated.gif": encoded(
        PICTURE.convert("P"), "gif", save_all=True, append_images=[PICTURE.convert("P")]
    ),
    "a_png_called.jpg": encoded(PICTURE, "png"),
    "one_pixel.png": encoded(Image.fromarray(gradient(1, 1)), "png"),
    "wide.jpg": encoded(Image.fromarray(gradient(20, 20000)), "jpeg", quality=95),
    **{f"held_{n}.jpg": rotated(n) for n in range(1, 9)},
}
BROKEN = {
    "empty.jpg": (b"", "it is empty"),
    "truncated.jpg": (JPEG[: len(JPEG) // 2], "JPEG"),
    "header_only.jpg": (JPEG[:20], "JPEG"),
    "truncated.png": (encoded(PICTURE, "png")[:100], "Invalid PNG data"),
    "text.jpg": (b"not a picture", "Unknown image file format"),
    "a_tiff_called.jpg": (encoded(PICTURE, "tiff"), "Unknown image file format"),
}


def as_pillow_sees_it(content):
    picture = ImageOps.exif_transpose(Image.open(io.BytesIO(content)))
    if picture.mode.startswith("I"):  # Pillow's own conversion cuts at 255
        picture = Image.fromarray((np.asarray(picture) // 256).astype(np.uint8))
    return np.asarray(picture.convert("RGB"))


@pytest.fixture
def pictures(tmp_path, monkeypatch):
    """A folder of good ones, and a cache of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    root = tmp_path / "pictures"
    for split in ("train", "test"):
        (root / split / "odd").mkdir(parents=True)
        for name, content in GOOD.items():
            (root / split / "odd" / name).write_bytes(content)
    return root


def add_broken(root):
    for name, (content, _) in BROKEN.items():
        (root / "train" / "odd" / name).write_bytes(content)


def reopened(root, **settings):
    return open_dataset.__wrapped__(f"folder:{root}", None, 0, **settings)


@pytest.mark.parametrize("name", GOOD)
def test_an_odd_picture_is_decoded_as_pillow_decodes_it(tmp_path, name):
    (tmp_path / name).write_bytes(GOOD[name])
    found = folder.examine(tmp_path / name)
    assert found.error is None
    image = folder.upright(folder.decode(tf.constant(GOOD[name])), tf.constant(found.orientation))
    theirs = as_pillow_sees_it(GOOD[name]).astype(int)
    assert image.shape == theirs.shape
    # Decoders of JPEG round and scale colours in their own ways; CMYK's conversion more so.
    assert np.abs(image.numpy().astype(int) - theirs).mean() < (8 if "cmyk" in name else 3)


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_picture_is_seen(tmp_path, name):
    content, message = BROKEN[name]
    (tmp_path / name).write_bytes(content)
    assert message in folder.examine(tmp_path / name).error


def test_a_folder_with_broken_pictures_is_refused_with_the_names_of_all(pictures):
    add_broken(pictures)
    with pytest.raises(UserError) as raised:
        reopened(pictures)
    message = str(raised.value)
    assert f"6 of the {2 * len(GOOD) + 6} files in {pictures} cannot be read" in message
    for name in BROKEN:
        assert f"train/odd/{name} (" in message
    assert "repair or remove them, or set data.on_broken to skip" in message
    assert "\n" not in message


def test_broken_pictures_can_be_left_out(pictures, capsys):
    add_broken(pictures)
    dataset = reopened(pictures, on_broken="skip")
    assert dataset.num_examples("train") == len(GOOD)
    warning = capsys.readouterr().out
    assert "warning: 6 of" in warning
    assert "train/odd/empty.jpg (it is empty)" in warning
    shapes = {tuple(dataset.decode(example).shape) for example in dataset.encoded("train")}
    assert (1, 1, 3) in shapes
    assert (20, 20000, 3) in shapes


def test_what_was_looked_through_is_looked_at_again_only_where_it_has_changed(
    pictures, monkeypatch
):
    reopened(pictures)
    looked_at = []
    examine = folder.examine
    monkeypatch.setattr(folder, "examine", lambda path: looked_at.append(path) or examine(path))
    reopened(pictures)
    assert looked_at == []
    changed = pictures / "test" / "odd" / "plain.jpg"
    changed.write_bytes(GOOD["gray.jpg"])
    reopened(pictures)
    assert looked_at == [changed]


def test_an_unknown_policy_is_refused(pictures):
    with pytest.raises(
        UserError, match=r"unknown data\.on_broken 'ignore': choose one of skip, st"
    ):
        reopened(pictures, on_broken="ignore")
