"""Evaluates weights on a data set.

FILE is anything that mnv2.pretrained.load reads, or a .tflite or .onnx file of
mnv2.export. NAME is a TFDS classification set, or folder:PATH for pictures in
PATH/train/CLASS/ and PATH/test/CLASS/. Every example of the split counts once.
Pictures are cropped and resized as the weights' family evaluates: slim and
Keras crop the central 87.5 %; torchvision and timm resize the shorter side and
crop the centre.

    python -m mnv2.evaluate --weights runs/NAME/ARM/0 --dataset fashion_mnist
    python -m mnv2.evaluate --weights model.keras --dataset folder:~/pictures

Prints top-1, top-5 and the commonest mistakes; writes result.json,
confusion.csv and confusion.png to --output.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mnv2.data.folder_tree import ON_BROKEN
from mnv2.deployment.options import add_weights_options, weights_options
from mnv2.runtime.cli import command_parser, run, whole_number
from mnv2.runtime.errors import check_choice
from mnv2.runtime.files import write_json, write_text
from mnv2.runtime.machine import keep_compiled_programs, keep_freed_memory
from mnv2.runtime.terminal import as_line, note

if TYPE_CHECKING:  # these import JAX and TensorFlow, which --help does not wait for
    from mnv2.training.evaluation import Evaluation

SPLITS = ("train", "validation", "test")


def main() -> None:
    parser = command_parser("mnv2.evaluate", __doc__)
    add_weights_options(parser)
    parser.add_argument("--dataset", required=True, metavar="NAME")
    parser.add_argument(
        "--data_dir", help="folder of the data sets (default: ~/tensorflow_datasets)"
    )
    parser.add_argument("--split", default="test", help="train, validation or test (default: test)")
    parser.add_argument("--batch_size", type=whole_number(), default=100)
    parser.add_argument(
        "--on_broken",
        default="stop",
        help="what to do about unreadable pictures of a folder: stop, or skip them (default: stop)",
    )
    parser.add_argument(
        "--output", type=Path, default=Path("runs/evaluation"), help="(default: runs/evaluation)"
    )
    arguments = parser.parse_args()
    check_choice(arguments.split, SPLITS, "--split")
    check_choice(arguments.on_broken, ON_BROKEN, "--on_broken")
    from mnv2 import data
    from mnv2.deployment.evaluation import evaluate_any
    from mnv2.deployment.usage import describe_input, open_weights
    from mnv2.pretrained.preprocessing import note_unlike
    from mnv2.training.classes import match_classes

    keep_compiled_programs()
    loaded = open_weights(arguments.weights, **weights_options(arguments))
    dataset = data.open_dataset(
        arguments.dataset, arguments.data_dir, on_broken=arguments.on_broken
    )
    loaded = match_classes(loaded, dataset, arguments.weights)
    describe_input(loaded.preprocess, loaded.image_size, arguments.mean is not None)
    note_unlike(loaded.image_size, loaded.channels, lambda: dataset.first(arguments.split))
    if loaded.output != "softmax":
        note(f"the loss is that of a softmax, though the network ends in a {loaded.output}")
    evaluation = evaluate_any(loaded, dataset, arguments.split, arguments.batch_size)
    title = f"{arguments.weights} on {dataset.name}"
    report(evaluation, loaded.display_names, title, arguments.output)


def report(evaluation: "Evaluation", labels: Sequence[str], title: str, folder: Path) -> None:
    """Prints the result and writes it to `folder`."""
    from mnv2.analysis import confusion

    summary, matrix = evaluation
    print(f"{title}: {summary['examples']:,.0f} images")
    print(f"  top-1  {100 * summary['accuracy']:6.2f} %")
    print(f"  top-5  {100 * summary['top5_accuracy']:6.2f} %")
    print(f"  loss   {summary['loss']:6.3f}")
    if mistakes := confusion.commonest_mistakes(matrix):
        print("  commonest mistakes, in % of the class:")
    for true, predicted, share in mistakes:
        print(f"    {share:5.1f}  {as_line(labels[true])} taken for {as_line(labels[predicted])}")
    write_json(folder / "result.json", summary)
    write_text(folder / "confusion.csv", confusion.to_csv(matrix, labels))
    top1 = f"top-1 {100 * summary['accuracy']:.2f} %"
    confusion.draw(matrix, labels, f"{title}\n{top1}", folder / "confusion.png")
    print(f"in {folder}: result.json, confusion.csv, confusion.png")


if __name__ == "__main__":
    keep_freed_memory()
    run(main)
