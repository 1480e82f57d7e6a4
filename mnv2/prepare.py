"""Downloads and prepares a data set: python -m mnv2.prepare NAME [--data_dir DIR]

NAME is fashion_mnist, cifar10, cifar100, imagenet2012 or any other classification set of TensorFlow
Datasets, or the path of one that is prepared. folder:PATH checks a folder of pictures,
PATH/train/CLASS/PICTURE and PATH/test/..., or PATH/CLASS/PICTURE.
"""

from mnv2.runtime.cli import command_parser, hide_gpus_from_tensorflow, run


def main() -> None:
    parser = command_parser("mnv2.prepare", __doc__)
    parser.add_argument("name", metavar="NAME")
    parser.add_argument(
        "--data_dir",
        help="folder of the data sets (default: $TFDS_DATA_DIR, or ~/tensorflow_datasets)",
    )
    arguments = parser.parse_args()
    hide_gpus_from_tensorflow()
    from mnv2.data import open_dataset

    dataset = open_dataset(arguments.name, arguments.data_dir)
    print(f"{dataset.name}: {dataset.num_classes} classes, images {dataset.image_shape}")
    for split in dataset.splits:
        print(f"  {split:10} {dataset.num_examples(split):>9,} images")
    print(f"  in         {dataset.folder}")


if __name__ == "__main__":
    run(main)
