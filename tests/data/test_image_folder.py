"""Unusual pictures in a folder are read; broken ones are named."""

import os

import numpy as np
import pytest
from PIL import ExifTags, Image

from mnv2.data import datasets, image_folder, open_dataset, train_batches
from mnv2.runtime.errors import UserError
from tests.data.pictures import encoded, gradient
from tests.views import view_of


def rotated(orientation):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
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
    "a_tiff_called.jpg": encoded(PICTURE, "tiff"),
    "wide.jpg": encoded(Image.fromarray(gradient(20, 20000)), "jpeg", quality=95),
    **{f"held_{n}.jpg": rotated(n) for n in range(1, 9)},
}
BROKEN = {
    "empty.jpg": (b"", "it is empty"),
    "truncated.jpg": (JPEG[: len(JPEG) // 2], "damaged or unusual"),
    "header_only.jpg": (JPEG[:20], "damaged"),
    "truncated.png": (encoded(PICTURE, "png")[:100], "image file is truncated"),
    "text.jpg": (b"not a picture", "or no picture in a format of"),
}


@pytest.fixture
def pictures(tmp_path, monkeypatch):
    """Writes a folder of good pictures in two classes; the cache is empty."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    root = tmp_path / "pictures"
    for split in ("train", "test"):
        for label in ("odd", "plain"):
            (root / split / label).mkdir(parents=True)
        (root / split / "plain" / "plain.jpg").write_bytes(JPEG)
        for name, content in GOOD.items():
            (root / split / "odd" / name).write_bytes(content)
    return root


def add_broken(root):
    for name, (content, _) in BROKEN.items():
        (root / "train" / "odd" / name).write_bytes(content)


def reopen(root, validation=0, **settings):
    datasets._open.cache_clear()  # as in another process
    return open_dataset(f"folder:{root}", None, validation, **settings)


@pytest.mark.parametrize("split", ["train", ""])  # with a test split, and without one
def test_validation_that_takes_every_picture_of_a_class_is_refused(pictures, split):
    root = pictures / split
    most = reopen(root).num_examples("train") - 1
    with pytest.raises(UserError, match=r"validation \d+ holds out every training picture of"):
        reopen(root, validation=most)


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_picture_is_detected(tmp_path, name):
    content, message = BROKEN[name]
    (tmp_path / name).write_bytes(content)
    assert message in image_folder.check_file(tmp_path / name)


def test_a_folder_with_broken_pictures_is_rejected_and_all_are_named(pictures):
    add_broken(pictures)
    with pytest.raises(UserError) as raised:
        reopen(pictures)
    message = str(raised.value)
    assert f"5 of the {2 * len(GOOD) + 7} files in {pictures} cannot be read" in message
    for name in BROKEN:
        assert f"train/odd/{name} (" in message
    assert "repair or remove them, or set data.on_broken to skip" in message
    assert "\n" not in message


def test_broken_pictures_can_be_skipped(pictures, capsys):
    add_broken(pictures)
    dataset = reopen(pictures, on_broken="skip")
    assert dataset.num_examples("train") == len(GOOD) + 1
    warning = capsys.readouterr().err
    assert "warning: 5 of" in warning
    assert "train/odd/empty.jpg (it is empty)" in warning
    shapes = {tuple(dataset.decode(example).shape) for example in dataset.encoded("train")}
    assert (1, 1, 3) in shapes
    assert (20, 20000, 3) in shapes


def test_only_changed_files_are_checked_again(pictures, monkeypatch):
    reopen(pictures)
    checked = []
    check_file = image_folder.check_file
    monkeypatch.setattr(
        image_folder, "check_file", lambda path: checked.append(path) or check_file(path)
    )
    reopen(pictures)
    assert checked == []
    changed = pictures / "test" / "odd" / "plain.jpg"
    changed.write_bytes(GOOD["gray.jpg"])
    reopen(pictures)
    assert checked == [changed]


def test_what_was_checked_before_an_interruption_is_not_checked_again(pictures, monkeypatch):
    checked = []
    check_file = image_folder.check_file

    def interrupted(path):
        checked.append(path)
        if path.parent == pictures / "train" / "plain":
            raise KeyboardInterrupt
        return check_file(path)

    monkeypatch.setattr(image_folder, "check_file", interrupted)
    with pytest.raises(KeyboardInterrupt):
        reopen(pictures)
    before = set(checked)
    checked.clear()
    monkeypatch.setattr(image_folder, "check_file", lambda path: checked.append(path))
    reopen(pictures)
    assert set(checked) & before == {pictures / "train" / "plain" / "plain.jpg"}


def test_a_large_folder_is_read_at_once_and_a_broken_picture_is_named(
    pictures, monkeypatch, capsys
):
    monkeypatch.setattr(image_folder, "CHECKED_FIRST", 10)
    broken = pictures / "train" / "odd" / "truncated.jpg"
    broken.write_bytes(BROKEN["truncated.jpg"][0])
    dataset = reopen(pictures)
    assert "are checked as they are read, and not before" in capsys.readouterr().err
    count = dataset.num_examples("train")
    read = train_batches(dataset, count, seed=0, view=view_of(size=(8, 8), channels=3))
    with pytest.raises(
        UserError, match=f"broken picture {broken} .*damaged.*: repair or remove it"
    ):
        next(read)
    assert reopen(pictures, on_broken="skip").num_examples("train") == count - 1


def test_a_class_whose_name_is_no_utf_8_is_checked(pictures):
    for split in ("train", "test"):
        (pictures / split / "plain").rename(pictures / split / os.fsdecode(b"caf\xe9"))
    assert reopen(pictures).class_names == [os.fsdecode(b"caf\xe9"), "odd"]
