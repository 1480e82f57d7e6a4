"""Sets that have only some splits are divided by one rule, which is said."""

import itertools

import numpy as np
import pytest
import tensorflow_datasets as tfds

from mnv2.data import datasets, eval_batches, note_untrained, open_dataset, train_batches
from mnv2.runtime.errors import UserError
from tests.data.test_decoding import PICTURE, few_colours
from tests.views import eval_view_of, view_of

SIZE = (4, 4)
VIEW = eval_view_of(size=SIZE)


def prepare(data_dir, counts, label=lambda split, i: i % 3, size=SIZE, picture=None, **options):
    """Prepares a set of three classes that is in no list of TFDS."""

    def examples(split):
        for i in range(counts[split]):
            pixels = np.full((*SIZE, 3), i, np.uint8) if picture is None else picture
            yield i, {"image": pixels, "label": label(split, i)}

    features = {
        "image": tfds.features.Image(shape=(*size, 3)),
        "label": tfds.features.ClassLabel(num_classes=3),
    }
    tfds.dataset_builders.store_as_tfds_dataset(
        "tiny_set",
        "1.0.0",
        features=tfds.features.FeaturesDict(features),
        split_datasets={split: examples(split) for split in counts},
        data_dir=data_dir,
        **options,
    )


def reopen(data_dir, validation=0, name="tiny_set", **settings):
    datasets._open_tfds.cache_clear()
    return open_dataset(name, str(data_dir), validation, **settings)


def pictures(dataset, split):
    """Returns the number that is in every pixel of each picture of a split."""
    return [int(dataset.decode(x)[0, 0, 0]) for x in dataset.encoded(split)]


def evaluated(dataset, split):
    batches = eval_batches(dataset, split, 4, view=VIEW)
    return sum(int(batch["mask"].sum()) for batch in batches)


def notes(capsys):
    return [x for x in capsys.readouterr().err.splitlines() if x.startswith("note: ")]


def counts(dataset):
    return {split: dataset.num_examples(split) for split in dataset.splits}


def test_a_split_test_without_labels_gives_way_to_validation(tmp_path, capsys):
    # As ImageNet is, if the archive of its test pictures was there when it was prepared.
    prepare(
        tmp_path,
        {"train": 20, "validation": 6, "test": 9},
        lambda split, i: -1 if split == "test" else i % 3,
    )
    capsys.readouterr()
    dataset = reopen(tmp_path, 4)
    assert notes(capsys) == [
        "note: tiny_set has a split test without labels: its split validation is used as test"
    ]
    assert counts(dataset) == {"train": 16, "validation": 4, "test": 6}
    assert dataset.tfds_range("test") == ("validation", 0, 6)
    assert evaluated(dataset, "test") == 6


def test_a_split_test_without_labels_gives_way_to_a_share_of_train(tmp_path, capsys):
    prepare(tmp_path, {"train": 20, "test": 9}, lambda split, i: -1 if split == "test" else i % 3)
    capsys.readouterr()
    assert counts(reopen(tmp_path)) == {"train": 18, "test": 2}
    assert notes(capsys) == [
        "note: tiny_set has a split test without labels: the last 2 of its 20 training examples "
        "are held out as test"
    ]


def test_a_set_without_any_labels_is_rejected(tmp_path):
    prepare(tmp_path, {"test": 9}, lambda split, i: -1)
    with pytest.raises(UserError, match=r"tiny_set has no labelled .*; test has no labels"):
        reopen(tmp_path)


@pytest.mark.parametrize("in_memory", [True, False])
@pytest.mark.parametrize("split", ["train", "test"])
def test_a_label_that_is_no_class_stops_training_and_evaluation(tmp_path, split, in_memory):
    prepare(
        tmp_path,
        {"train": 20, "test": 9},
        lambda of, i: -1 if (of, i) == (split, 3) else i % 3,
        size=SIZE if in_memory else (None, None),
    )
    dataset = reopen(tmp_path)
    assert dataset.fits_in_memory() == in_memory
    message = f"the split {split} of tiny_set has the label -1, but the labels of its 3 classes"
    with pytest.raises(UserError, match=message):
        evaluated(dataset, split)
    if split == "train":
        with pytest.raises(UserError, match=message):
            list(itertools.islice(train_batches(dataset, 4, seed=0, view=view_of(size=SIZE)), 5))


def test_a_class_without_training_examples_is_named(tmp_path, capsys):
    prepare(tmp_path, {"train": 20, "test": 9})
    note_untrained(reopen(tmp_path), np.asarray([0, 2, 2, 0]))
    note_untrained(reopen(tmp_path), np.asarray([0, 2, 1, 0]))
    said = "note: tiny_set: no training example is left of 1"
    assert [line for line in notes(capsys) if "no training example" in line] == [said]


def test_a_tenth_of_train_is_held_out_for_testing_before_validation(tmp_path, capsys):
    prepare(tmp_path, {"train": 40})
    capsys.readouterr()
    with_validation, without = reopen(tmp_path, 10), reopen(tmp_path)
    assert counts(with_validation) == {"train": 26, "validation": 10, "test": 4}
    assert counts(without) == {"train": 36, "test": 4}
    # An evaluation, which knows nothing of validation, sees the same test pictures.
    assert pictures(with_validation, "test") == pictures(without, "test")
    parts = [pictures(with_validation, split) for split in with_validation.splits]
    assert sorted(itertools.chain(*parts)) == list(range(40))
    assert evaluated(without, "test") == 4
    assert notes(capsys) == 2 * [
        "note: tiny_set has no split test: the last 4 of its 40 training examples are held out "
        "as test"
    ]


@pytest.mark.parametrize("only", ["test", "validation"])
def test_a_set_for_evaluation_needs_no_train(tmp_path, only):
    prepare(tmp_path, {only: 7})
    dataset = reopen(tmp_path)
    assert evaluated(dataset, "test") == 7
    assert dataset.fits_in_memory()
    with pytest.raises(UserError, match=r"tiny_set has no split 'train': choose one of .*test"):
        next(train_batches(dataset, 4, seed=0, view=view_of(size=SIZE)))
    with pytest.raises(UserError, match="tiny_set has no split train to hold 5 examples out from"):
        reopen(tmp_path, 5)


def test_broken_pictures_are_skipped_in_a_set_for_evaluation(tmp_path):
    prepare(tmp_path, {"test": 7})
    dataset = reopen(tmp_path, on_broken="skip")
    assert evaluated(dataset, "test") == 7


def test_validation_can_be_evaluated_if_the_set_has_it(tmp_path, capsys):
    prepare(tmp_path, {"train": 20, "validation": 6, "test": 9})
    capsys.readouterr()
    assert evaluated(reopen(tmp_path), "validation") == 6
    assert notes(capsys) == []
    assert evaluated(reopen(tmp_path, 5), "validation") == 5
    assert notes(capsys) == [
        "note: validation is the last 5 training examples of tiny_set, and not its split validation"
    ]


def test_a_split_that_is_missing_is_rejected(fashion_mnist):
    dataset = open_dataset("fashion_mnist", None, 0)
    message = "fashion_mnist has no split 'validation': choose one of train, test"
    with pytest.raises(UserError, match=message):
        evaluated(dataset, "validation")


def test_a_set_with_other_splits_only_is_rejected(tmp_path):
    prepare(tmp_path, {"extra": 7})
    with pytest.raises(UserError, match="none of the splits train, validation, test: it has extra"):
        reopen(tmp_path)


def test_an_ordered_set_is_noted_if_examples_are_held_out(tmp_path, capsys):
    prepare(tmp_path, {"train": 20}, disable_shuffling=True)
    capsys.readouterr()
    reopen(tmp_path)
    assert "test, held out from its end, may lack classes" in notes(capsys)[1]


def test_a_prepared_set_that_tfds_does_not_know_is_opened(tmp_path):
    prepare(tmp_path, {"train": 20, "test": 6})
    folder = tmp_path / "tiny_set"
    for name, data_dir in (
        ("tiny_set", tmp_path),
        ("tiny_set:1.0.0", tmp_path),
        (str(folder), tmp_path / "elsewhere"),
        (str(folder / "1.0.0"), tmp_path / "elsewhere"),
    ):
        assert counts(reopen(data_dir, name=name)) == {"train": 20, "test": 6}
    for name, message in (
        ("tiny_sett", "unknown data set 'tiny_sett': did you mean 'tiny_set'?"),
        ("tiny_set:2.0.0", "tiny_set has no such version"),
        (str(tmp_path / "none"), "there is no such folder"),
        (str(tmp_path / "downloads"), "pictures are opened as folder:/"),
    ):
        with pytest.raises(UserError, match=message):
            reopen(tmp_path, name=name)


def test_a_set_of_pictures_with_a_palette_is_seen_as_a_folder_is(tmp_path):
    (tmp_path / "few.bmp").write_bytes(few_colours(200, kind="bmp"))
    prepare(tmp_path, {"test": 2}, size=(None, None), picture=str(tmp_path / "few.bmp"))
    dataset = reopen(tmp_path)
    for example in dataset.encoded("test"):
        seen = dataset.decode(example).numpy().astype(int)
        assert np.abs(seen - np.asarray(PICTURE)).mean() < 5


def test_pictures_of_other_types_are_rejected(tmp_path, monkeypatch):
    prepare(tmp_path, {"test": 2})
    monkeypatch.setattr(tfds.features.Image, "dtype", np.uint16)
    with pytest.raises(UserError, match="the pictures of data set 'tiny_set' are uint16"):
        reopen(tmp_path)
