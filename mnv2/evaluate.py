"""How good are these weights? python -m mnv2.evaluate --weights FILE --dataset NAME

FILE is anything that mnv2.pretrained.load reads. NAME is a TFDS classification set, or folder:PATH
for pictures in PATH/train/CLASS/ and PATH/test/CLASS/. Every example of the split counts once, seen
as the weights' family evaluates: slim and Keras crop the central 87.5 %, torchvision and timm
resize the shorter side and crop the centre.

    python -m mnv2.evaluate --weights runs/v2_ablation/linear/0 --dataset fashion_mnist
    python -m mnv2.evaluate --weights timm/mobilenetv2_100.ra_in1k --dataset imagenet2012

Prints top-1, top-5 and the commonest mistakes; writes result.json, confusion.csv and
confusion.png to --output.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib.colors
import matplotlib.figure
import numpy as np

from mnv2 import data
from mnv2.data.preprocess import to_channels
from mnv2.predict import load_classifier
from mnv2.pretrained import Pretrained, imagenet
from mnv2.runtime.cli import command_parser, run
from mnv2.runtime.errors import UserError, check_choice, check_positive
from mnv2.runtime.files import write_json, write_text
from mnv2.runtime.huge_pages import restart_with_huge_pages
from mnv2.runtime.throughput import Progress
from mnv2.training import metrics
from mnv2.training.devices import AXIS, place, shard

SPLITS = ("train", "validation", "test")
WRITTEN = 20  # classes up to which the confusion picture has numbers


class Evaluation(NamedTuple):
    """Mean loss and accuracies, and how many of each class (row) were taken for which (column)."""

    summary: dict[str, float]
    confusion: np.ndarray


def main() -> None:
    parser = command_parser("mnv2.evaluate", __doc__)
    parser.add_argument("--weights", required=True, metavar="FILE")
    parser.add_argument("--dataset", required=True, metavar="NAME")
    parser.add_argument("--data_dir", help="where data sets lie (default: ~/tensorflow_datasets)")
    parser.add_argument("--split", default="test", help="train or test (default: test)")
    parser.add_argument("--image_size", type=int, help="pixels (default: as the weights expect)")
    parser.add_argument("--batch_size", type=int, default=100)
    parser.add_argument("--output", type=Path, default=Path("runs/evaluation"))
    arguments = parser.parse_args()
    check_choice(arguments.split, SPLITS, "--split")
    check_positive(arguments.batch_size, "--batch_size")
    loaded = load_classifier(arguments.weights, arguments.image_size)
    dataset = data.open_dataset(arguments.dataset, arguments.data_dir)
    loaded = match_classes(loaded, dataset, arguments.weights)
    evaluation = evaluate(loaded, dataset, arguments.split, arguments.batch_size)
    report(evaluation, loaded.labels, f"{arguments.weights} on {dataset.name}", arguments.output)


def match_classes(loaded: Pretrained, dataset: data.Dataset, weights: str) -> Pretrained:
    """The network for the data set's classes, without slim's background where that is too much.

    Raises UserError if network and data set have not the same classes.
    """
    if dataset.num_classes == 1000:
        loaded = loaded.without_background()
    names, theirs = loaded.labels, tuple(dataset.class_names)
    if len(names) != len(theirs):
        raise UserError(
            f"{weights} knows {len(names)} classes, {dataset.name} has {len(theirs)}: "
            "fine-tune it on that data set with configs/finetune.py"
        )
    if loaded.class_names is None or theirs == imagenet.synsets():
        return loaded
    for i, (ours, name) in enumerate(zip(names, theirs, strict=True)):
        if ours != name:
            raise UserError(f"{weights} calls class {i} {ours!r}, {dataset.name} calls it {name!r}")
    return loaded


def evaluate(loaded: Pretrained, dataset: data.Dataset, split: str, batch_size: int) -> Evaluation:
    """Every example of `split` once, over all devices."""
    batch_size += -batch_size % jax.device_count()

    def step(variables: Any, batch: dict[str, jax.Array]) -> tuple[metrics.Sums, jax.Array]:
        logits = loaded.logits(variables, batch["image"])
        losses = metrics.cross_entropy(logits, batch["label"])
        counts = metrics.count(logits, batch["label"], losses, batch["mask"])
        return jax.lax.psum(counts, AXIS), jnp.argmax(logits, axis=-1)

    def view(pictures: Any) -> Any:
        return to_channels(loaded.preprocess.view(pictures, loaded.image_size), loaded.channels)

    run_step = jax.pmap(step, AXIS, in_axes=(None, 0), out_axes=(None, 0))
    variables = place(loaded.variables)
    classes = len(loaded.labels)
    confusion = np.zeros((classes, classes), np.int64)
    sums = []
    progress = Progress("evaluating", -(-dataset.num_examples(split) // batch_size), batch_size)
    progress.say("compiling")
    for number, batch in enumerate(data.eval_batches(dataset, split, batch_size, view=view), 1):
        counts, predictions = run_step(variables, shard(batch))
        sums.append(counts)
        predicted = np.asarray(predictions).reshape(-1)
        counted = batch["mask"] > 0
        np.add.at(confusion, (batch["label"][counted], predicted[counted]), 1)
        progress.stop(number)
        if number > 1:
            progress.show(number, metrics.summarize(sums[-1:])["loss"])
        progress.start(number)
    progress.clear()
    return Evaluation(metrics.summarize(sums), confusion)


def report(evaluation: Evaluation, labels: Sequence[str], title: str, folder: Path) -> None:
    """Prints the result and writes it to `folder`."""
    summary = evaluation.summary
    print(f"{title}: {summary['examples']:,.0f} images")
    print(f"  top-1  {100 * summary['accuracy']:6.2f} %")
    print(f"  top-5  {100 * summary['top5_accuracy']:6.2f} %")
    print(f"  loss   {summary['loss']:6.3f}")
    if mistakes := commonest_mistakes(evaluation.confusion):
        print("  commonest mistakes, in % of the class:")
    for true, taken, share in mistakes:
        print(f"    {share:5.1f}  {labels[true]} taken for {labels[taken]}")
    lines = [",".join(["", *(_quoted(name) for name in labels)])]
    for name, row in zip(labels, evaluation.confusion, strict=True):
        lines.append(",".join([_quoted(name), *map(str, row)]))
    write_json(folder / "result.json", summary)
    write_text(folder / "confusion.csv", "\n".join(lines) + "\n")
    draw_confusion(evaluation, labels, title, folder / "confusion.png")
    print(f"in {folder}: result.json, confusion.csv, confusion.png")


def commonest_mistakes(confusion: np.ndarray, count: int = 5) -> list[tuple[int, int, float]]:
    """(class, taken for, in % of the class), the commonest first."""
    shares = 100 * confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    np.fill_diagonal(shares, 0)
    places = np.argsort(-shares, axis=None)[:count]
    pairs = [divmod(int(place), len(confusion)) for place in places]
    return [
        (true, taken, float(shares[true, taken])) for true, taken in pairs if shares[true, taken]
    ]


def draw_confusion(evaluation: Evaluation, labels: Sequence[str], title: str, path: Path) -> None:
    """Draws rows of true classes, in % of each, over columns of what they were taken for."""
    confusion = evaluation.confusion
    shares = 100 * confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    few = len(labels) <= WRITTEN
    side = 3 + 0.5 * len(labels) if few else 9
    figure = matplotlib.figure.Figure(figsize=(side + 1, side), layout="constrained")
    axis = figure.subplots()
    # Most of a good network's mistakes are below 10 %, hence the root.
    scale = matplotlib.colors.PowerNorm(0.5, 0, 100)
    image = axis.imshow(shares, cmap="Greys", norm=scale, interpolation="nearest")
    figure.colorbar(image, ax=axis, label="% of the true class", shrink=0.8)
    if few:
        axis.set_xticks(range(len(labels)), labels, rotation=45, ha="right")
        axis.set_yticks(range(len(labels)), labels)
        for (row, column), share in np.ndenumerate(shares):
            if share >= 0.05:
                color = "white" if share > 30 else "black"
                axis.text(column, row, f"{share:.0f}" if share >= 1 else f"{share:.1f}",
                          ha="center", va="center", color=color, fontsize="small")  # fmt: skip
    axis.set_xlabel("taken for")
    axis.set_ylabel("true class")
    axis.set_title(
        f"{title}\ntop-1 {100 * evaluation.summary['accuracy']:.2f} %", fontsize="medium"
    )
    figure.savefig(path, dpi=110)


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"' if set(name) & {",", '"'} else name


if __name__ == "__main__":
    restart_with_huge_pages("mnv2.evaluate")
    run(main)
