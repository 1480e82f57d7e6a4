"""What do pretrained weights gain when there are few pictures?

The classes of Fashion-MNIST are divided in two halves. The weights are trained on all 30,000
pictures of five classes. The other five classes, which these weights have never seen, are learnt
from 20 pictures per class. `configs/finetune.py:compare` trains on them with equal budgets and five
seeds: all layers from the weights, only the classifier on top of them, and the same network from
scratch. All 5,000 test pictures of these classes are used for testing. Writes everything to
--workdir. The same command resumes unfinished runs.
"""

from pathlib import Path

import numpy as np
from PIL import Image

from configs import finetune
from experiments.common.experiment import experiment_parser, run
from mnv2 import data
from mnv2.sweeps.launch import run_sweep
from mnv2.training.config import defaults

# Both halves have tops, shoes and other things.
SOURCE = ("T-shirt/top", "Trouser", "Coat", "Sandal", "Bag")
TARGET = ("Pullover", "Dress", "Shirt", "Sneaker", "Ankle boot")
PICTURES = 20  # training pictures per class of TARGET


def main() -> None:
    arguments = experiment_parser(__file__, __doc__, "workdir", steps=50).parse_args()
    workdir: Path = arguments.workdir
    for name, classes, pictures in (("source", SOURCE, None), ("target", TARGET, PICTURES)):
        write_pictures(workdir / "pictures" / name, classes, pictures)

    print(f"weights from {', '.join(SOURCE)}", flush=True)
    source = defaults()
    source.data.name = f"folder:{workdir / 'pictures/source'}"
    source.data.update(image_size=28, validation=1000)
    source.update(duration="500 steps", arms=(("linear", {}),), baseline="linear", panels=())
    run_sweep(source, workdir / "source")

    print(f"\n{PICTURES} pictures of each of {', '.join(TARGET)}", flush=True)
    config = finetune.get_config("compare")
    config.weights = str(workdir / "source/linear/0")
    config.data.name = f"folder:{workdir / 'pictures/target'}"
    config.data.update(image_size=28, train="pad_crop(2)|flip")
    config.update(eval_batch_size=500, duration=f"{arguments.steps} steps")
    config.optimization.backbone_rate = 0.5  # high, since these weights come from few pictures
    config.eval_every = config.checkpoint_every = "0 steps"
    run_sweep(config, workdir / "target")


def write_pictures(folder: Path, classes: tuple[str, ...], pictures: int | None) -> None:
    """Writes the Fashion-MNIST pictures of some classes to FOLDER/SPLIT/CLASS/N.png, if need be.

    These are all test pictures, and the first so many training pictures per class; None for all.
    """
    done = folder / "done"
    if done.exists():
        return
    dataset = data.open_dataset("fashion_mnist")
    for split, limit in (("train", pictures), ("test", None)):
        images, labels = dataset.arrays(split)
        for name in classes:
            of_class = folder / split / name.replace("/", " or ")
            of_class.mkdir(parents=True, exist_ok=True)
            for i in np.flatnonzero(labels == dataset.class_names.index(name))[:limit]:
                Image.fromarray(images[i, ..., 0]).save(of_class / f"{i:05}.png")
    done.touch()


if __name__ == "__main__":
    run(main)
