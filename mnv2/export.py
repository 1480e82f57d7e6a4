"""Exports weights for phones, browsers and servers.

WEIGHTS is anything that mnv2.pretrained.load reads, such as the folder of a
run. FORMAT is one or more of these, with commas between them:

    litert       LiteRT (TensorFlow Lite), float32    Android, iOS, Python
    litert-int8  the same with weights and activations of 8 bits
    onnx         ONNX, float32    ONNX Runtime, browsers, OpenVINO, TensorRT
    onnx-int8    the same with weights and activations of 8 bits, no TensorRT
    stablehlo    jax.export    JAX without this package

    python -m mnv2.export runs/v2_ablation/linear/0 --to litert,onnx
    python -m mnv2.export WEIGHTS --to litert-int8 --calibrate fashion_mnist
    python -m mnv2.export timm/mobilenetv2_100.ra_in1k --to onnx --batch any

A file takes pixels from 0 to 255, uint8 (batch, height, width, channels), and
gives probabilities. With --preprocessing outside it takes normalised images,
float32, and gives logits. The names of the classes and the preprocessing are
in the file, except for stablehlo. Each file is compared with the network in
JAX. mnv2.predict and mnv2.evaluate take .tflite and .onnx files as --weights.
"""

from pathlib import Path

from mnv2.deployment.formats import FORMATS
from mnv2.deployment.options import add_weights_options
from mnv2.runtime.cli import command_parser, run, whole_number


def main() -> None:
    parser = command_parser("mnv2.export", __doc__)
    add_weights_options(parser, positional=True)
    parser.add_argument(
        "--to", type=_formats, required=True, metavar="FORMAT", help=", ".join(FORMATS)
    )
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
        type=_batch,
        default=1,
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
    arguments = vars(parser.parse_args())
    from mnv2.deployment.export import export  # imports JAX, which --help does not wait for

    print(export(**arguments)[1])


def _formats(text: str) -> list[str]:
    """Reads `litert,onnx`; a format that is named twice counts once."""
    return list(dict.fromkeys(name.strip() for name in text.split(",")))


def _batch(text: str) -> int | None:
    """Reads a number of images; None for `any`."""
    return None if text == "any" else whole_number()(text)


if __name__ == "__main__":
    run(main)
