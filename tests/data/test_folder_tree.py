"""What the folders in a folder of pictures mean, and what is left out."""

import os
import re

import numpy as np
import pytest

from mnv2 import prepare
from mnv2.data import datasets, open_dataset
from mnv2.runtime.errors import UserError
from tests.data.test_decoding import PICTURE, encoded

PNG = encoded(PICTURE, "png")
JPEG = encoded(PICTURE, "jpeg")


@pytest.fixture(autouse=True)
def empty_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("caches")))


def write(root, *paths, content=PNG):
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(content)


def write_usual(root, splits=("train", "test"), count=2):
    for split in splits:
        for label in ("cat", "dog"):
            write(root, *(f"{split}/{label}/{i}.png" for i in range(count)))


def reopen(root, validation=0, **settings):
    datasets._open.cache_clear()  # as in another process
    return open_dataset(f"folder:{root}", None, validation, **settings)


def counts(dataset):
    return {split: dataset.num_examples(split) for split in dataset.splits}


def notes(capsys):
    return capsys.readouterr().err.splitlines()


def labels(dataset, split):
    return [int(example["label"]) for example in dataset.encoded(split)]


def test_a_usual_folder_needs_no_note(tmp_path, capsys):
    write_usual(tmp_path)
    dataset = reopen(tmp_path)
    assert counts(dataset) == {"train": 4, "test": 4}
    assert dataset.class_names == ["cat", "dog"]
    assert notes(capsys) == []


@pytest.mark.parametrize("name", ["val", "valid", "validation", "Val"])
def test_validation_is_used_as_test_if_there_is_no_test(tmp_path, capsys, name):
    write_usual(tmp_path, ("train", name))
    dataset = reopen(tmp_path, 1)
    assert counts(dataset) == {"train": 3, "validation": 1, "test": 4}
    (note,) = notes(capsys)
    assert note.endswith("has no split test: its split validation is used as test")


def test_validation_can_be_evaluated_if_the_folder_has_it(tmp_path, capsys):
    write_usual(tmp_path, ("train", "val", "test"))
    write(tmp_path, "val/cat/more.png")
    assert counts(reopen(tmp_path)) == {"train": 4, "validation": 5, "test": 4}
    assert notes(capsys) == []


@pytest.mark.parametrize("name", ["test", "val"])
def test_a_folder_for_evaluation_needs_no_train(tmp_path, name):
    write_usual(tmp_path, (name,))
    dataset = reopen(tmp_path)
    assert dataset.num_examples("test") == 4
    with pytest.raises(UserError, match="has no split 'train': choose one of"):
        dataset.num_examples("train")


@pytest.mark.parametrize("splits", [("train",), (".",)])
def test_a_tenth_of_each_class_is_held_out_if_there_is_only_train(tmp_path, capsys, splits):
    write_usual(tmp_path, splits, count=20)
    write(tmp_path, *(f"{splits[0]}/rare/{i}.png" for i in range(2)))
    dataset = reopen(tmp_path, 5)
    assert counts(dataset) == {"train": 32, "validation": 5, "test": 5}
    assert sorted(labels(dataset, "test")) == [0, 0, 1, 1, 2]
    (note,) = notes(capsys)
    assert "no split test: a tenth of each class, 5 of its 42 pictures, is held out" in note

    def names(split):
        return {example["path"].numpy() for example in dataset.encoded(split)}

    assert len(names("train") | names("validation") | names("test")) == 42
    held_out = names("test")
    dataset = reopen(tmp_path)
    assert names("test") == held_out


def test_pictures_without_classes_in_test_are_not_used(tmp_path, capsys):
    write_usual(tmp_path, ("train",), count=10)
    write(tmp_path, "test/1.png", "test/2.png")
    assert counts(reopen(tmp_path)) == {"train": 18, "test": 2}
    said = notes(capsys)
    assert f"note: left out of {tmp_path}/test, in no folder of a class: 1.png, 2.png" in said
    assert f"note: {tmp_path}/test has no folders of classes with pictures, and is not used" in said


def test_a_class_that_only_test_has_is_rejected(tmp_path):
    write_usual(tmp_path)
    write(tmp_path, "test/Cat/1.png", "test/unlabelled/1.png")
    with pytest.raises(UserError, match="classes that train lacks: 'Cat', 'unlabelled'; rename"):
        reopen(tmp_path)


def test_a_class_whose_training_pictures_are_all_broken_is_rejected(tmp_path):
    write_usual(tmp_path)
    write(tmp_path, "train/dog/0.png", "train/dog/1.png", content=PNG[:50])
    with pytest.raises(UserError, match=r"no picture of 'dog' for training in .* can be read"):
        reopen(tmp_path, on_broken="skip")


def test_a_class_without_test_pictures_is_noted(tmp_path, capsys):
    write_usual(tmp_path)
    write(tmp_path, "train/emu/1.png")
    assert reopen(tmp_path).num_classes == 3
    assert notes(capsys) == [f"note: the test split of {tmp_path} has no pictures of 'emu'"]


def test_one_class_alone_is_rejected(tmp_path):
    write(tmp_path, "train/cat/1.png", "test/cat/1.png")
    with pytest.raises(UserError, match="has only the class 'cat': a classifier needs two"):
        reopen(tmp_path)


def test_what_systems_leave_behind_is_neither_class_nor_picture(tmp_path, capsys):
    write_usual(tmp_path)
    for place in ("", "train/", "train/cat/", "test/dog/"):
        for folder in (".ipynb_checkpoints", "@eaDir", "__MACOSX", "$RECYCLE.BIN"):
            write(tmp_path, f"{place}{folder}/1.png")
        for file in ("Thumbs.db", ".DS_Store", "desktop.ini", "._1.png"):
            write(tmp_path, f"{place}{file}", content=b"no picture")
    assert counts(reopen(tmp_path)) == {"train": 4, "test": 4}
    assert notes(capsys) == []


def test_files_that_are_no_pictures_are_left_out_and_said_in_one_line(tmp_path, capsys):
    write_usual(tmp_path)
    others = [f"train/cat/{name}" for name in ("a.txt", "b.csv", "c.json", "d.xml", "e.md", "none")]
    write(tmp_path, *others, "test/labels.csv", content=b"BM P5\nno picture")
    assert counts(reopen(tmp_path)) == {"train": 4, "test": 4}
    (note,) = notes(capsys)
    assert note.startswith(f"note: left out of {tmp_path}, no pictures: ")
    assert "train/cat/a.txt, train/cat/b.csv" in note
    assert note.endswith(" and 2 more")


def test_a_picture_is_known_by_its_suffix(tmp_path):
    write_usual(tmp_path)
    write(tmp_path, "train/cat/no suffix", "train/cat/odd.xyz", "train/cat/UPPER.PNG")
    write(tmp_path, "train/cat/photo.JPG", "train/cat/photo.Jpeg", content=JPEG)
    assert counts(reopen(tmp_path)) == {"train": 7, "test": 4}
    write(tmp_path, "train/cat/text.jpg", content=b"no picture")
    write(tmp_path, "train/cat/phone.heic", content=b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    with pytest.raises(UserError) as raised:
        reopen(tmp_path)
    assert "train/cat/text.jpg (it is damaged, or no picture in a format " in str(raised.value)
    assert "train/cat/phone.heic (it is damaged, or no picture in a format " in str(raised.value)


def test_folders_below_a_class_belong_to_it(tmp_path):
    write_usual(tmp_path)
    write(tmp_path, "train/cat/red/1.png", "train/cat/red/small/2.png", "test/dog/train/3.png")
    dataset = reopen(tmp_path)
    assert dataset.class_names == ["cat", "dog"]
    assert counts(dataset) == {"train": 6, "test": 5}
    assert sorted(labels(dataset, "train")) == [0, 0, 0, 0, 1, 1]


def test_links_are_followed_and_loops_end(tmp_path):
    elsewhere = tmp_path / "elsewhere"
    write(elsewhere, "dogs/1.png", "dogs/2.png", "3.png")
    root = tmp_path / "pictures"
    write(root, "train/cat/1.png", "test/cat/1.png", "test/dog/1.png")
    (root / "train/dog").symlink_to(elsewhere / "dogs")
    (root / "train/cat/linked.png").symlink_to(elsewhere / "3.png")
    (root / "train/cat/loop").symlink_to(root / "train/cat")
    assert counts(reopen(root)) == {"train": 4, "test": 2}
    (root / "train/cat/gone.png").symlink_to(tmp_path / "gone.png")
    with pytest.raises(UserError, match=r"train/cat/gone.png \(No such file or directory\)"):
        reopen(root)


def test_names_may_have_spaces_and_any_letters(tmp_path, capsys):
    root = tmp_path / "my pictures ü"
    names = ["guinea pig", "käse", "猫", "a,b 'c' \"d\""]
    for label in names:
        write(root, f"train/{label}/ein bild ß.png", f"test/{label}/写真 1.png")
    os.makedirs(os.fsencode(root / "train/猫") + b"/sub")
    with open(os.fsencode(root / "train/猫/sub") + b"/\xff.png", "wb") as file:
        file.write(PNG)
    dataset = reopen(root)
    assert dataset.class_names == sorted(names)
    assert counts(dataset) == {"train": 5, "test": 4}
    assert counts(reopen(root)) == counts(dataset)  # now from the cache
    for example in dataset.encoded("train"):
        np.testing.assert_array_equal(dataset.decode(example), np.asarray(PICTURE))


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        (("training/a/1.png", "test/a/1.png"), "folder 'training': if it is a split, call it tr"),
        (
            ("Training/a/1.png", "Testing/a/1.png"),
            "folder 'Testing': if it is a split, call it tr",
        ),
        (("val/a/1.png", "valid/a/1.png"), "valid are the same split: keep one of them"),
        (("inner/train/a/1.png", "inner/test/a/1.png"), "has no splits, but ROOT/inner has: give "),
        (("1.png", "2.png"), "no pictures in ROOT: expected ROOT/train/CLASS/PICTURE.jpg or "),
        (("train/1.png", "test/a/2.png"), "no pictures in ROOT/train: expected ROOT/train/CLASS"),
        (("a/1.png", "b/1.png"), "one picture per class: nothing remains to test with"),
        (("a/1.txt", "b/1.txt"), "no pictures in ROOT: expected"),
    ],
)
def test_unclear_folders_are_rejected(tmp_path, paths, message):
    for path in paths:
        write(tmp_path, path, content=b"text" if path.endswith(".txt") else PNG)
    with pytest.raises(UserError, match=re.escape(message.replace("ROOT", str(tmp_path)))):
        reopen(tmp_path)


@pytest.mark.parametrize("of_train", ["train/1.png", "train/ice/1.png"])
def test_a_class_called_as_a_split_is_called_is_refused_beside_other_classes(tmp_path, of_train):
    write(tmp_path, "bus/1.png", "car/1.png", of_train)
    with pytest.raises(UserError, match=r"folder 'train', .* pictures beside it \(bus, car\): if"):
        reopen(tmp_path)


def test_other_folders_beside_the_splits_are_noted(tmp_path, capsys):
    write_usual(tmp_path)
    write(tmp_path, "extra/cat/1.png", "loose.png")
    write(tmp_path, "train/empty/notes.txt", content=b"no picture")
    reopen(tmp_path)
    said = "\n".join(notes(capsys))
    assert f"left out of {tmp_path}, no splits, which are called train, test, val: extra" in said
    assert f"left out of {tmp_path}/train, folders without pictures, which are no classes" in said
    assert f"left out of {tmp_path}, in no folder of a class: loose.png" in said


def test_prepare_says_which_splits_there_are(tmp_path, monkeypatch, capsys):
    write_usual(tmp_path, ("test",))
    monkeypatch.setattr("sys.argv", ["prepare", f"folder:{tmp_path}"])
    prepare.main()
    assert capsys.readouterr().out.splitlines() == [
        f"folder:{tmp_path}: 2 classes, images (None, None, 3)",
        "  test               4 images",
        f"  in         {tmp_path}",
    ]
