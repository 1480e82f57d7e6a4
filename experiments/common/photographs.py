"""Writes pictures of ImageNet's usual sizes, to time how fast they are read."""

from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image

PHOTOGRAPH = Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg"

# Most ImageNet pictures have 500 x 375 or 375 x 500 pixels, in JPEG files of about 110 kB.
SIZES = ((500, 375), (375, 500), (500, 333), (500, 500))
CLASSES = ("photographs", "pictures")  # a data set has two


def write(folder: Path, count: int = 512) -> None:
    """Writes `count` training pictures and two test pictures to FOLDER/SPLIT/CLASS.

    Does nothing if they are already there. Each picture is a random crop, at a random scale, of the
    photograph that comes with matplotlib.
    """
    if (folder / "test" / CLASSES[1] / "1.jpg").exists():
        return
    random = np.random.default_rng(0)
    photograph = Image.open(PHOTOGRAPH).convert("RGB")
    for split, pictures in (("train", count), ("test", 2)):
        for number in range(pictures):
            path = folder / split / CLASSES[number % 2] / f"{number}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            crop(photograph, random).save(path, quality=95)


def crop(photograph: Image.Image, random: np.random.Generator) -> Image.Image:
    """Returns a random part of a photograph, at a random scale, in one of SIZES."""
    width, height = SIZES[random.integers(len(SIZES))]
    scale = random.uniform(0.6, 1) * min(photograph.width / width, photograph.height / height)
    left = random.uniform(0, photograph.width - width * scale)
    top = random.uniform(0, photograph.height - height * scale)
    box = (left, top, left + width * scale, top + height * scale)
    return photograph.resize((width, height), Image.Resampling.BICUBIC, box=box)
