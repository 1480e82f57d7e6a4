"""Downloads and prepares a data set: python -m mnv2.data.prepare NAME [--data_dir DIR]

NAME is fashion_mnist, cifar10, cifar100, imagenet2012 or any other classification set of TensorFlow
Datasets; folder:PATH checks a folder of pictures, PATH/train/CLASS/PICTURE and PATH/test/...
"""

from mnv2.data import open_dataset
from mnv2.runtime.cli import command_parser, run


def main() -> None:
    parser = command_parser("mnv2.data.prepare", __doc__)
    parser.add_argument("name", metavar="NAME")
    parser.add_argument(
        "--data_dir", help="where data sets lie (default: $TFDS_DATA_DIR, or ~/tensorflow_datasets)"
    )
    arguments = parser.parse_args()
    dataset = open_dataset(arguments.name, arguments.data_dir)
    print(f"{dataset.name}: {dataset.num_classes} classes, images {dataset.image_shape}")
    for split in ("train", "test"):
        print(f"  {split:5} {dataset.num_examples(split):>9,} images")
    print(f"  in    {dataset.place}")


if __name__ == "__main__":
    run(main)
