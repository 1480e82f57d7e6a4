"""What does each augmentation look like? python -m experiments.augmentations

Draws eight versions of one photograph for each kind of augmentation that configs know, with the
usual settings. Erasing, which recipes do with a probability, is done each time. Writes
augmentations.jpg to --out.
"""

from pathlib import Path

import numpy as np
import tensorflow as tf
from PIL import Image

from experiments.frameworks.photographs import PHOTOGRAPH
from mnv2.data import View
from mnv2.data.augment import Policy
from mnv2.runtime.cli import command_parser, run
from mnv2.training.seen import VERSIONS, draw_grid, trained
from mnv2.training.step import Mixing

SIZE = (160, 160)
KINDS: dict[str, View] = {
    "inception": View(SIZE, "inception"),
    "resized_crop": View(SIZE, "resized_crop", area=(0.08, 1.0)),
    "distortion\nfast": View(SIZE, distortion="fast"),
    "distortion\nfull": View(SIZE, distortion="full"),
    "policy\nrandom": View(SIZE, policy=Policy("random")),
    "policy\ntrivial_wide": View(SIZE, policy=Policy("trivial_wide", interpolation="bilinear")),
    "policy\nauto_imagenet": View(SIZE, policy=Policy("auto_imagenet")),
    "erasing": View(SIZE, erasing=1.0),
}
MIXED = {"mixup 0.2": Mixing(0.2, 0.0, VERSIONS), "cutmix 1.0": Mixing(0.0, 1.0, VERSIONS)}


def main() -> None:
    parser = command_parser("experiments.augmentations", __doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/augmentations"))
    out = parser.parse_args().out
    photograph = Image.open(PHOTOGRAPH).convert("RGB")
    side = min(photograph.size)
    image = tf.constant(np.asarray(photograph.crop((0, 0, side, side))))
    other = tf.constant(np.asarray(photograph.rotate(180).crop((0, 0, side, side))))
    rows = {
        name: [trained([image], view, version)[0] for version in range(VERSIONS)]
        for name, view in KINDS.items()
    }
    for name, mixing in MIXED.items():
        rows[name] = [
            trained([image, other], View(SIZE), version, mixing)[0] for version in range(VERSIONS)
        ]
    out.mkdir(parents=True, exist_ok=True)
    draw_grid(rows, [str(version + 1) for version in range(VERSIONS)], out / "augmentations.jpg")
    print(f"in {out}: augmentations.jpg")


if __name__ == "__main__":
    run(main)
