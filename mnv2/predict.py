"""Classifies pictures: python -m mnv2.predict PICTURE... --weights FILE

PICTURE is a picture, or a folder with pictures at any depth. FILE is anything
that mnv2.pretrained.load reads: weights of Keras, torchvision, timm or slim,
the folder of a run, a .safetensors file of this package, or a name on the
Hugging Face hub. It may also be a .tflite or .onnx file of mnv2.export.

    python -m mnv2.predict cat.jpg dog.png --weights mobilenet_v2-7ebf99e0.pth
    python -m mnv2.predict photos --weights runs/NAME/ARM/0 --plot seen.png
    python -m mnv2.predict photos --weights model.keras --classes labels.txt

A picture that cannot be read is named and left out; the exit code is then 2.
"""

import csv
import io
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from mnv2.deployment.options import add_weights_options, weights_options
from mnv2.runtime.cli import command_parser, run, whole_number
from mnv2.runtime.errors import UserError
from mnv2.runtime.files import PICTURES, check_file, did_you_mean, replacing, write_json, write_text
from mnv2.runtime.machine import keep_compiled_programs
from mnv2.runtime.terminal import StatusLine, as_line, drawn, first_few, note, warn

if TYPE_CHECKING:  # imports JAX, which --help does not wait for
    from mnv2.deployment.exported import Exported
    from mnv2.pretrained import Pretrained

BAR = 20  # characters for a probability of 1
BATCH_SIZE = 32  # pictures that go through the network at once, at most
MOST_DRAWN = 100  # pictures in one drawing
OUTPUTS = (".csv", ".json")


class Prediction(NamedTuple):
    """A picture and the probabilities of its classes."""

    path: Path
    probabilities: np.ndarray


def main() -> None:
    parser = command_parser("mnv2.predict", __doc__)
    parser.add_argument("pictures", metavar="PICTURE", nargs="+", type=Path)
    add_weights_options(parser)
    parser.add_argument(
        "--top", type=whole_number(), default=5, help="classes per picture (default: 5)"
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help="write path, rank, class and probability to this .csv or .json, and print nothing",
    )
    parser.add_argument("--plot", type=Path, metavar="PNG", help="draw pictures and classes here")
    arguments = parser.parse_args()
    if arguments.output:
        check_file(arguments.output, OUTPUTS, "--output")
    if arguments.plot:
        check_file(arguments.plot, PICTURES, "--plot")
    paths = find_pictures(arguments.pictures)
    if arguments.plot and len(paths) > MOST_DRAWN:
        raise UserError(f"--plot draws {MOST_DRAWN} pictures at most, not {len(paths)}")
    from mnv2.deployment.usage import describe_input, open_weights
    from mnv2.pretrained.preprocessing import note_unlike

    keep_compiled_programs()
    loaded = open_weights(arguments.weights, **weights_options(arguments))
    unreadable: list[Path] = []
    pictures = read_pictures(paths, unreadable)
    first = next(pictures, None)
    found: list[Prediction] = []
    if first:
        describe_input(loaded.preprocess, loaded.image_size, arguments.mean is not None)
        note_unlike(loaded.image_size, loaded.channels, lambda: first[1])
        line = StatusLine("predicting")
        line.say("compiling")
        for new in predictions(loaded, itertools.chain([first], pictures), len(paths)):
            found.extend(new)
            line.clear()
            for path, row in () if arguments.output else new:
                print(as_line(path))
                print(format_classes(row, loaded.display_names, arguments.top))
            if len(paths) > BATCH_SIZE:
                line.say(f"{len(found) + len(unreadable)} of {len(paths)} pictures")
        line.clear()
    if found and arguments.output:
        write(found, loaded.display_names, arguments.top, arguments.output)
        print(f"{len(found)} picture{'s' * (len(found) > 1)} in {arguments.output}")
    if found and arguments.plot:
        draw(found, loaded.display_names, arguments.top, arguments.plot)
        print(f"drawn in {arguments.plot}")
    if unreadable:
        raise UserError(f"{len(unreadable)} of {len(paths)} pictures cannot be read: see above")


def find_pictures(paths: Sequence[Path]) -> list[Path]:
    """Returns the given files, and in place of each folder the pictures in it, sorted.

    A note says which files are no pictures. Raises UserError for a folder without pictures.
    """
    from mnv2.data.folder_tree import files_below

    if not paths:
        raise UserError("no pictures are given")
    found: list[Path] = []
    for path in paths:
        if not path.is_dir():
            found.append(path)
            continue
        pictures, others = files_below(path)
        if not pictures:
            raise UserError(f"no pictures in the folder {path} ({len(others)} files)")
        if others:
            note(f"files in {path} that are no pictures: {first_few(others)}")
        found.extend(sorted(pictures))
    return found


def read_pictures(
    paths: Sequence[Path], unreadable: list[Path]
) -> Iterator[tuple[Path, np.ndarray]]:
    """Yields pictures with their paths. A single one that cannot be read raises UserError.

    Of several, it is named in a warning and added to `unreadable`.
    """
    for path in paths:
        try:
            yield path, read_picture(path)
        except UserError as error:
            if len(paths) == 1:
                raise
            warn(f"{error}; it is left out")
            unreadable.append(path)


def read_picture(path: Path) -> np.ndarray:
    """Reads a picture file as training does: h w 3, uint8, upright as EXIF says."""
    from mnv2.data import decoding

    try:
        return decoding.read_picture(path)
    except UserError as error:
        hint = "" if path.exists() else did_you_mean(path)
        raise UserError(f"cannot read picture {path}: {error}{hint}") from None


def predictions(
    loaded: "Pretrained | Exported", pictures: Iterator[tuple[Path, np.ndarray]], count: int
) -> Iterator[list[Prediction]]:
    """Computes the probabilities of the classes of `count` pictures, in batches of one size.

    Raises UserError if they are not finite.
    """
    size = min(count, BATCH_SIZE)
    view = loaded.preprocess.view_of(loaded.image_size, loaded.channels)
    views = ((path, np.asarray(view(picture))) for path, picture in pictures)
    for batch in itertools.batched(views, size):
        images = np.zeros((size, *batch[0][1].shape), np.float32)
        images[: len(batch)] = [image for _, image in batch]
        probabilities = np.asarray(loaded.probabilities(images))
        new = [Prediction(path, row) for (path, _), row in zip(batch, probabilities, strict=False)]
        if wrong := [path for path, row in new if not np.isfinite(row).all()]:
            raise UserError(f"the probabilities for {wrong[0]} are not finite")
        yield new


def write(predictions: Sequence[Prediction], labels: Sequence[str], top: int, path: Path) -> None:
    """Writes the most probable classes of each picture as a table, whole or not at all."""
    rows = [
        {"path": str(name), "rank": rank, "class": label, "probability": float(f"{share:.8g}")}
        for name, row in predictions
        for rank, (label, share) in enumerate(most_probable(row, labels, top), start=1)
    ]
    if path.suffix.lower() == ".json":
        write_json(path, rows)
        return
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())


def most_probable(
    probabilities: np.ndarray, labels: Sequence[str], top: int
) -> list[tuple[str, float]]:
    """Returns the most probable classes with their probabilities, the first one first."""
    return [(labels[i], float(probabilities[i])) for i in np.argsort(-probabilities)[:top]]


def format_classes(probabilities: np.ndarray, labels: Sequence[str], top: int) -> str:
    """Formats the most probable classes with bars, one per line."""
    best = [(as_line(label)[:40], p) for label, p in most_probable(probabilities, labels, top)]
    width = max(len(name) for name, _ in best)
    return "\n".join(
        f"  {rank:2}  {name:{width}}  {100 * p:6.2f} %  {'#' * round(BAR * p)}".rstrip()
        for rank, (name, p) in enumerate(best, start=1)
    )


def draw(predictions: Sequence[Prediction], labels: Sequence[str], top: int, path: Path) -> None:
    """Draws each picture next to bars of its most probable classes."""
    import matplotlib.figure

    count = len(predictions)
    figure = matplotlib.figure.Figure(figsize=(9, 2.6 * count), layout="constrained")
    axes = figure.subplots(count, 2, squeeze=False, width_ratios=(1, 2))
    for (left, right), (name, row) in zip(axes, predictions, strict=True):
        left.imshow(read_picture(name))
        left.set_title(drawn(name.name), fontsize="medium")
        left.axis("off")
        best = np.argsort(-row)[:top][::-1]
        names = [drawn(labels[i]) for i in best]  # at numbers, since two may look the same
        bars = right.barh(range(len(best)), 100 * row[best], tick_label=names, color="0.6")
        right.bar_label(bars, fmt="%.1f %%", padding=3)
        right.set_xlim(0, 115)
        right.set_xticks((0, 25, 50, 75, 100))
        right.spines[["top", "right"]].set_visible(False)
    axes[-1][1].set_xlabel("probability, %")
    with replacing(path) as unfinished:
        figure.savefig(unfinished, dpi=110, format=path.suffix.removeprefix("."))


if __name__ == "__main__":
    run(main)
