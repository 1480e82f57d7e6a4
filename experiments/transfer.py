"""What do pretrained weights buy where there are few pictures? python -m experiments.transfer

Fashion-MNIST is parted by class. Five classes, with all their 30,000 pictures, make the weights;
of the other five, which those weights have never seen, 20 training pictures a class are given.
On these `configs/finetune.py:compare` trains with the same budget: all layers from the weights, the
classifier alone over them, and the same network from scratch, five seeds each. Tested on all 5,000
test pictures of those five classes. Writes everything to --workdir; a second call goes on.
"""

from pathlib import Path

import numpy as np

from configs import finetune, v2_ablation
from mnv2 import data
from mnv2.runtime.cli import command_parser, run
from mnv2.runtime.huge_pages import restart_with_huge_pages
from mnv2.sweeps import execute

# Both halves have tops, shoes and others.
SOURCE = ("T-shirt/top", "Trouser", "Coat", "Sandal", "Bag")
TARGET = ("Pullover", "Dress", "Shirt", "Sneaker", "Ankle boot")
PICTURES = 20  # a class of TARGET to train on


def main() -> None:
    parser = command_parser("experiments.transfer", __doc__)
    parser.add_argument("--workdir", type=Path, default=Path("runs/transfer"))
    parser.add_argument("--steps", type=int, default=50, help="of each run on the few pictures")
    parser.add_argument("--source_steps", type=int, default=500, help="of the run that makes them")
    arguments = parser.parse_args()
    workdir: Path = arguments.workdir
    for name, classes, pictures in (("source", SOURCE, None), ("target", TARGET, PICTURES)):
        write_pictures(workdir / "pictures" / name, classes, pictures)

    print(f"weights from {', '.join(SOURCE)}", flush=True)
    source = v2_ablation.get_config()
    source.data.name = f"folder:{workdir / 'pictures/source'}"
    source.data.image_size = 28
    source.data.validation = 1000
    source.duration = f"{arguments.source_steps} steps"
    source.arms = (("linear", {}),)
    source.seeds = 1
    source.panels = ()
    execute.run(source, workdir / "source")

    print(f"\n{PICTURES} pictures each of {', '.join(TARGET)}", flush=True)
    config = finetune.get_config("compare")
    config.weights = str(workdir / "source/linear/0")
    config.data.name = f"folder:{workdir / 'pictures/target'}"
    config.data.image_size = 28
    config.data.augmentation = "crop_flip"
    config.data.pad = 2
    config.eval_batch_size = 500
    config.duration = f"{arguments.steps} steps"
    config.optimization.backbone_rate = 0.5  # the weights know few pictures: they may move
    config.eval_every = config.checkpoint_every = "0 steps"
    execute.run(config, workdir / "target")


def write_pictures(folder: Path, classes: tuple[str, ...], pictures: int | None) -> None:
    """Writes Fashion-MNIST's pictures of some classes to folder/SPLIT/CLASS/N.png.

    `pictures` of each class for training, the first ones, or all; all for testing.
    """
    done = folder / "done"
    if done.exists():
        return
    import tensorflow as tf  # after mnv2, which silences it

    dataset = data.open_dataset("fashion_mnist")
    for split, limit in (("train", pictures), ("test", None)):
        images, labels = (array.numpy() for array in dataset.arrays(split))
        for name in classes:
            place = folder / split / name.replace("/", " or ")
            place.mkdir(parents=True, exist_ok=True)
            for i in np.flatnonzero(labels == dataset.class_names.index(name))[:limit]:
                (place / f"{i:05}.png").write_bytes(tf.io.encode_png(images[i]).numpy())
    done.touch()


if __name__ == "__main__":
    restart_with_huge_pages("experiments.transfer")
    run(main)
