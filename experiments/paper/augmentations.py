"""What does each augmentation look like?

Draws eight versions of one photograph for each kind of augmentation that configs know, with the
usual settings. Erasing, which recipes do with a probability, is done each time. Writes
augmentations.jpg to --out.
"""

import numpy as np
from PIL import Image

from experiments.common.experiment import experiment_parser, run
from experiments.common.photographs import PHOTOGRAPH
from mnv2.preprocess import MIX, PICTURES, Pipeline, parse
from mnv2.preprocess.host import View
from mnv2.preprocess.simple import with_fill
from mnv2.training.seen import VERSIONS, draw_grid, trained

SIZE = (160, 160)
KINDS = (
    *("inception_crop", "resized_crop", "distort_color(fast=True)", "distort_color(fast=False)"),
    *("rand_augment", "trivial_augment_wide(interpolation='bilinear')", "auto_augment"),
    *("erase(1.0)", "mix(mixup=0.2)", "mix(cutmix=1.0)"),
)


def main() -> None:
    out = experiment_parser(__file__, __doc__).parse_args().out
    photograph = Image.open(PHOTOGRAPH).convert("RGB")
    side = min(photograph.size)
    upright = photograph.crop((0, 0, side, side))
    images = [np.asarray(upright), np.asarray(upright.rotate(180))]
    rows = {}
    for text in KINDS:
        pipeline = with_fill(parse(text, "kind"), (0.5,))
        view = View(pipeline, SIZE, 3, rounds=True)
        on_device = Pipeline(pipeline.of(PICTURES, MIX))
        rows[text.replace("(", "\n(")] = [
            trained(images, view, version, on_device)[0] for version in range(VERSIONS)
        ]
    out.mkdir(parents=True, exist_ok=True)
    draw_grid(rows, [str(version + 1) for version in range(VERSIONS)], out / "augmentations.jpg")
    print(f"in {out}: augmentations.jpg")


if __name__ == "__main__":
    run(main)
