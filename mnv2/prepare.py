"""Downloads and prepares a data set: python -m mnv2.prepare NAME [--data_dir DIR]

NAME is fashion_mnist, cifar10, cifar100, imagenet2012 or any other
classification set of TensorFlow Datasets, or the path of one that is prepared.
folder:PATH checks a folder of pictures, PATH/train/CLASS/PICTURE and
PATH/test/..., or PATH/CLASS/PICTURE.

    python -m mnv2.prepare NAME --resize 256 --out PATH

writes the set once more, as PATH/SPLIT/CLASS/N.jpg, for data.name folder:PATH.
The shorter sides have 256 pixels then, and pictures are read faster
(docs/recipes.md); random crops come from these pictures and not from the full
size. An interrupted command goes on.
"""

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mnv2.runtime.cli import command_parser, run, whole_number
from mnv2.runtime.errors import UserError
from mnv2.runtime.files import check_can_be_written, given_folder, replacing
from mnv2.runtime.terminal import StatusLine, format_seconds, note

if TYPE_CHECKING:
    from mnv2.data import Dataset

QUALITY = 90  # of JPEG, as in FFCV's recipes for ImageNet


def main() -> None:
    parser = command_parser("mnv2.prepare", __doc__)
    parser.add_argument("name", metavar="NAME")
    parser.add_argument(
        "--data_dir",
        help="folder of the data sets (default: $TFDS_DATA_DIR, or ~/tensorflow_datasets)",
    )
    parser.add_argument("--resize", type=whole_number(), metavar="PIXELS", help="of shorter sides")
    parser.add_argument("--out", metavar="PATH", help="the folder for the resized pictures")
    arguments = parser.parse_args()
    if (arguments.resize is None) != (arguments.out is None):
        raise UserError("--resize and --out belong together: give both, or neither")
    from mnv2.data import open_dataset

    if arguments.out is not None:
        out = given_folder(arguments.out, "--out")
        check_can_be_written(out, "--out")
    dataset = open_dataset(arguments.name, arguments.data_dir)
    print(f"{dataset.name}: {dataset.num_classes} classes, images {dataset.image_shape}")
    for split in dataset.splits:
        print(f"  {split:10} {dataset.num_examples(split):>9,} images")
    print(f"  in         {dataset.folder}")
    if arguments.out is not None:
        write_resized(dataset, arguments.resize, Path(out))
        print(f"  resized    --config.data.name folder:{out}")


def write_resized(dataset: "Dataset", side: int, folder: Path) -> None:
    """Writes folder/SPLIT/CLASS/N.jpg for each example; larger shorter sides become `side` pixels.

    Pictures that are there already are left as they are.
    """
    import numpy as np
    import tensorflow as tf
    from PIL import Image

    from mnv2.preprocess.host import resize_shorter

    names = [name.replace("/", "_") for name in dataset.class_names]
    if names != dataset.class_names:
        note("a / in the name of a class becomes _, since it is the name of a folder")

    def write(picture: np.ndarray, path: bytes) -> Any:
        if min(picture.shape[:2]) > side:
            picture = resize_shorter(picture, (side, side), None, size=side)
        with replacing(Path(os.fsdecode(path))) as unfinished:
            Image.fromarray(np.squeeze(picture)).save(unfinished, "JPEG", quality=QUALITY)
        return np.int32(0)

    def write_one(number: tf.Tensor, example: dict[str, tf.Tensor]) -> tf.Tensor:
        of_class = tf.gather(folders, example["label"])
        path = tf.strings.join([of_class, "/", tf.strings.as_string(number), ".jpg"])
        exists = tf.numpy_function(lambda x: os.path.exists(x), (path,), tf.bool)
        return tf.cond(
            tf.ensure_shape(exists, ()),
            lambda: tf.constant(0),
            lambda: tf.numpy_function(write, (dataset.decode(example), path), tf.int32),
        )

    parts = {part: split for split, part in dataset.parts.items()}  # test may be validation
    for split in parts.values():
        folders = tf.constant([os.fsencode(folder / split / name) for name in names])
        count, began = dataset.num_examples(split), time.perf_counter()
        line = StatusLine(f"writing {split}")
        written = dataset.encoded(split).enumerate().map(write_one, tf.data.AUTOTUNE)
        for done, _ in enumerate(written, start=1):
            if done % 100 == 0:
                left = (time.perf_counter() - began) * (count - done) / done
                line.say(f"{done:,} of {count:,} pictures, {format_seconds(left)} left")
        line.clear()


if __name__ == "__main__":
    run(main)
