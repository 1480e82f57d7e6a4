"""Exports weights for phones, browsers and servers: python -m mnv2.export WEIGHTS --to FORMAT

WEIGHTS is anything that mnv2.pretrained.load reads, such as the folder of a run. FORMAT is one or
more of these, with commas between them:

    litert       LiteRT (TensorFlow Lite), float32     Android, iOS, Python
    litert-int8  the same with weights and activations of 8 bits
    onnx         ONNX, float32                         ONNX Runtime, browsers, OpenVINO, TensorRT
    onnx-int8    the same with weights and activations of 8 bits, but not for TensorRT
    stablehlo    jax.export                            JAX without this package

    python -m mnv2.export runs/v2_ablation/linear/0 --to litert,onnx
    python -m mnv2.export runs/v2_ablation/linear/0 --to litert-int8 --calibrate fashion_mnist
    python -m mnv2.export timm/mobilenetv2_100.ra_in1k --to onnx --batch any --output v2.onnx

A file takes pixels from 0 to 255, uint8 (batch, height, width, channels), and gives probabilities.
With --preprocessing outside it takes normalised images, float32, and gives logits. The names of the
classes and the preprocessing are in the file, except for stablehlo. Each file is compared with the
network in JAX. mnv2.predict and mnv2.evaluate take .tflite and .onnx files as --weights.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from mnv2.deployment.options import add_weights_options, weights_options
from mnv2.runtime.cli import command_parser, run, whole_number
from mnv2.runtime.errors import UserError, check_choice

FORMATS = ("litert", "litert-int8", "onnx", "onnx-int8", "stablehlo")
PREPROCESSING = ("inside", "outside")
ANY_BATCH = ("onnx", "onnx-int8", "stablehlo")  # formats whose files may take any number of images


def main() -> None:
    parser = command_parser("mnv2.export", __doc__)
    add_weights_options(parser, positional=True)
    parser.add_argument("--to", required=True, metavar="FORMAT", help=", ".join(FORMATS))
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("runs/export"),
        metavar="PATH",
        help="a file for one format, or a folder (default: runs/export)",
    )
    parser.add_argument("--force", action="store_true", help="replace files that exist")
    parser.add_argument(
        "--preprocessing", default="inside", help="inside or outside of the file (default: inside)"
    )
    parser.add_argument(
        "--batch",
        default="1",
        metavar="N",
        help="images at once; any, for ONNX and StableHLO (default: 1)",
    )
    parser.add_argument(
        "--calibrate",
        metavar="DATASET",
        help="pictures that show int8 the ranges of values: a TFDS set, or folder:PATH; classes do "
        "not matter",
    )
    parser.add_argument(
        "--calibration_pictures", type=whole_number(), default=200, help="(default: 200)"
    )
    parser.add_argument(
        "--check", metavar="DATASET", help="evaluate JAX and each file on the whole test split"
    )
    parser.add_argument(
        "--data_dir", help="folder of the data sets (default: ~/tensorflow_datasets)"
    )
    parser.add_argument(
        "--threads", type=whole_number(), default=1, help="for the times (default: 1)"
    )
    arguments = parser.parse_args()
    formats = check_options(arguments)
    from mnv2.deployment.export import export

    _, table = export(
        arguments.weights,
        formats,
        arguments.output,
        force=arguments.force,
        preprocessing=arguments.preprocessing,
        batch=None if arguments.batch == "any" else int(arguments.batch),
        calibrate=arguments.calibrate,
        calibration_pictures=arguments.calibration_pictures,
        check=arguments.check,
        data_dir=arguments.data_dir,
        threads=arguments.threads,
        **weights_options(arguments),
    )
    print(table)


def check_options(arguments: argparse.Namespace) -> list[str]:
    """Returns the formats. Raises UserError as `check_formats` does, and for what is no batch."""
    batch = arguments.batch
    if batch != "any" and not batch.isdecimal():
        raise UserError(f"--batch must be a whole number, 1 or more, or any, got {batch!r}")
    formats = list(dict.fromkeys(name.strip() for name in arguments.to.split(",")))
    number = None if batch == "any" else int(batch)
    check_formats(formats, arguments.preprocessing, number, arguments.calibrate)
    return formats


def check_formats(
    formats: Sequence[str], preprocessing: str, batch: int | None, calibrate: str | None
) -> None:
    """Raises UserError for an unknown choice, and if a format needs what is not given."""
    check_choice(preprocessing, PREPROCESSING, "--preprocessing")
    if batch is not None and batch < 1:
        raise UserError(f"--batch must be a whole number, 1 or more, or any, got '{batch}'")
    for name in formats:
        check_choice(name, FORMATS, "--to")
        if batch is None and name not in ANY_BATCH:
            raise UserError(f"--batch any is for {', '.join(ANY_BATCH)}, not for {name}")
        if name.endswith("int8") and not calibrate:
            raise UserError(
                f"--to {name} needs pictures that show the ranges of values: --calibrate "
                "fashion_mnist, or --calibrate folder:PATH for any pictures below PATH"
            )


if __name__ == "__main__":
    run(main)
