"""Writes a data set of ImageNet's shape: python -m experiments.speed.imagenet_shaped --data_dir DIR

For trying what ImageNet would do, without ImageNet: 1000 classes, pictures of its usual sizes, in
JPEG files of its usual size, read and written by the official builder of TensorFlow Datasets as
`imagenet2012`. Each picture is a crop of a photograph, in a hue of its class.

    python -m mnv2.main --config configs/imagenet.py:d_li14 --config.data.dir DIR ...

What is trained on it says nothing about accuracy.
"""

import colorsys
import io
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image

from experiments.common import photographs
from experiments.common.experiment import experiment_parser, run
from mnv2 import data, pretrained
from mnv2.runtime.errors import UserError
from mnv2.runtime.terminal import StatusLine

TRAIN, TEST = 4000, 1000
NAME = "imagenet2012"


def pictures(count: int, seed: int) -> Iterator[tuple[int, bytes]]:
    """Yields classes, 0 to 999 again and again, and JPEG files."""
    random = np.random.default_rng(seed)
    photograph = Image.open(photographs.PHOTOGRAPH).convert("RGB")
    line = StatusLine("writing pictures")
    for number in range(count):
        label = number % 1000
        crop = np.asarray(photographs.crop(photograph, random), np.float32)
        hue = np.asarray(colorsys.hsv_to_rgb(label / 1000, 0.5, 1.0), np.float32)
        file = io.BytesIO()
        Image.fromarray((crop * hue).astype(np.uint8)).save(file, "JPEG", quality=95)
        yield label, file.getvalue()
        if number % 100 == 0:
            line.say(f"{number} of {count}")
    line.clear()


def write_archive(target: IO[bytes], files: Iterable[tuple[str, bytes]]) -> None:
    with tarfile.open(fileobj=target, mode="w") as archive:
        for name, content in files:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def _train_files(count: int) -> Iterator[tuple[str, bytes]]:
    of_class: dict[str, list[bytes]] = {}
    for label, content in pictures(count, seed=0):
        of_class.setdefault(pretrained.imagenet.synsets()[label], []).append(content)
    for name, contents in of_class.items():
        inner = io.BytesIO()
        write_archive(inner, ((f"{name}_{i}.JPEG", content) for i, content in enumerate(contents)))
        yield f"{name}.tar", inner.getvalue()


def prepare(data_dir: Path, train: int = TRAIN, test: int = TEST) -> data.Dataset:
    """Opens the data set in `data_dir`, which is written first if it is not there.

    Raises UserError if there is an ImageNet of another size, which may be the real one.
    """
    if not (data_dir / NAME).exists():
        manual = data_dir / "downloads" / "manual"
        manual.mkdir(parents=True, exist_ok=True)
        test_files = (  # the builder gives them the labels of ImageNet
            (f"ILSVRC2012_val_{number:08}.JPEG", content)
            for number, (_, content) in enumerate(pictures(test, seed=1), start=1)
        )
        for name, files in (
            ("ILSVRC2012_img_train.tar", _train_files(train)),
            ("ILSVRC2012_img_val.tar", test_files),
        ):
            if (manual / name).exists():
                raise UserError(f"{manual / name} exists already: choose another --data_dir")
            with (manual / name).open("wb") as file:
                write_archive(file, files)
    dataset = data.open_dataset(NAME, str(data_dir))
    if (found := dataset.num_examples("train")) != train:
        raise UserError(
            f"{data_dir} has an {NAME} of {found} training pictures, not {train}: choose another "
            "--data_dir"
        )
    return dataset


def main() -> None:
    folder = experiment_parser(__file__, __doc__, "data_dir").parse_args().data_dir
    dataset = prepare(folder)
    counts = ", ".join(f"{split} {dataset.num_examples(split)}" for split in dataset.splits)
    print(f"{NAME} in {folder}: {counts}; use it with --config.data.dir")


if __name__ == "__main__":
    run(main)
