"""Classifies pictures: python -m mnv2.predict PICTURE... --weights FILE

FILE is anything that mnv2.pretrained.load reads: weights of Keras, torchvision, timm or slim, the
folder of a run, a .safetensors file of this package, or a name on the Hugging Face hub.

    python -m mnv2.predict cat.jpg dog.png --weights mobilenet_v2-7ebf99e0.safetensors
    python -m mnv2.predict photos/*.jpg --weights runs/finetune/finetune/0 --plot seen.png
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageOps

from mnv2.runtime.cli import command_parser, hide_gpus_from_tensorflow, run
from mnv2.runtime.errors import UserError, check_positive

if TYPE_CHECKING:  # imports JAX, which --help does not wait for
    from mnv2.pretrained import Pretrained

BAR = 20  # characters for a probability of 1


def main() -> None:
    parser = command_parser("mnv2.predict", __doc__)
    parser.add_argument("pictures", metavar="PICTURE", nargs="+", type=Path)
    parser.add_argument("--weights", required=True, metavar="FILE")
    parser.add_argument("--top", type=int, default=5, help="classes per picture (default: 5)")
    parser.add_argument("--image_size", type=int, help="pixels (default: as the weights expect)")
    parser.add_argument("--plot", type=Path, metavar="PNG", help="draw pictures and classes here")
    arguments = parser.parse_args()
    check_positive(arguments.top, "--top")
    hide_gpus_from_tensorflow()
    from mnv2 import pretrained

    loaded = pretrained.load_classifier(arguments.weights, arguments.image_size)
    pictures = [read_picture(path, loaded.channels) for path in arguments.pictures]
    probabilities = predict(loaded, pictures)
    for path, row in zip(arguments.pictures, probabilities, strict=True):
        print(f"{path}\n{format_classes(row, loaded.display_names, arguments.top)}")
    if arguments.plot:
        titles = [path.name for path in arguments.pictures]
        draw(titles, pictures, probabilities, loaded.display_names, arguments.top, arguments.plot)
        print(f"drawn in {arguments.plot}")


def read_picture(path: Path, channels: int) -> np.ndarray:
    """Reads a picture file as h w c, uint8, upright as EXIF says."""
    try:
        with Image.open(path) as picture:
            upright = ImageOps.exif_transpose(picture)
            array = np.asarray(upright.convert("L" if channels == 1 else "RGB"))
    except FileNotFoundError:
        raise UserError(f"no such picture: {path}") from None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"cannot read picture {path}: {error}") from None
    return array.reshape(*array.shape[:2], channels)


def predict(loaded: "Pretrained", pictures: Sequence[np.ndarray]) -> np.ndarray:
    """Computes the probabilities of the classes for each picture: n classes."""
    views = [np.asarray(loaded.preprocess.crop_and_resize(x, loaded.image_size)) for x in pictures]
    return np.stack([loaded.probabilities(view[None])[0] for view in views])


def format_classes(probabilities: np.ndarray, labels: Sequence[str], top: int) -> str:
    """Formats the most probable classes with bars, one per line."""
    best = np.argsort(-probabilities)[:top]
    width = min(40, max(len(labels[i]) for i in best))
    return "\n".join(
        f"  {rank:2}  {labels[i][:40]:{width}}  {100 * probabilities[i]:6.2f} %  "
        f"{'#' * round(BAR * float(probabilities[i]))}".rstrip()
        for rank, i in enumerate(best, start=1)
    )


def draw(
    titles: Sequence[str],
    pictures: Sequence[np.ndarray],
    probabilities: np.ndarray,
    labels: Sequence[str],
    top: int,
    path: Path,
) -> None:
    """Draws each picture next to bars of its most probable classes."""
    import matplotlib.figure

    count = len(pictures)
    figure = matplotlib.figure.Figure(figsize=(9, 2.6 * count), layout="constrained")
    axes = figure.subplots(count, 2, squeeze=False, width_ratios=(1, 2))
    for (left, right), title, picture, row in zip(
        axes, titles, pictures, probabilities, strict=True
    ):
        left.imshow(picture.squeeze(), cmap="gray")
        left.set_title(title, fontsize="medium")
        left.axis("off")
        best = np.argsort(-row)[:top][::-1]
        bars = right.barh([labels[i] for i in best], 100 * row[best], color="0.6")
        right.bar_label(bars, fmt="%.1f %%", padding=3)
        right.set_xlim(0, 115)
        right.set_xticks((0, 25, 50, 75, 100))
        right.spines[["top", "right"]].set_visible(False)
    axes[-1][1].set_xlabel("probability, %")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def command() -> None:
    run(main)


if __name__ == "__main__":
    command()
