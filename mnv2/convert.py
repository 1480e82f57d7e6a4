"""Converts weights from one file to another.

FILE is anything that mnv2.pretrained.load reads, such as the folder of a run.

    python -m mnv2.convert runs/v2_ablation/linear/0 linear.safetensors
    python -m mnv2.convert timm/NAME v2.safetensors --names torchvision
    python -m mnv2.convert model.ckpt-1 v2.h5 --names keras --drop_background
"""

from mnv2.runtime.cli import command_parser, run
from mnv2.runtime.terminal import note


def main() -> None:
    parser = command_parser("mnv2.convert", __doc__)
    parser.add_argument("file", metavar="FILE")
    parser.add_argument(
        "out", metavar="OUT", help=".safetensors; .h5 for keras; .pth also for torchvision"
    )
    parser.add_argument(
        "--names", default="mnv2", help="whose names: mnv2, keras or torchvision (default: mnv2)"
    )
    parser.add_argument(
        "--drop_background", action="store_true", help="leave out the first of slim's 1001 classes"
    )
    arguments = parser.parse_args()
    from mnv2 import pretrained  # imports JAX, which --help does not wait for

    loaded = pretrained.load(arguments.file, drop_background=arguments.drop_background)
    pretrained.save(loaded, arguments.out, names=arguments.names)
    classes = f"{loaded.num_classes} classes" if loaded.num_classes else "no classifier"
    print(f"{type(loaded.model).__name__}, {classes}, in {arguments.out}")
    if arguments.names != "mnv2":
        note(loaded.preprocess.describe_view(loaded.image_size))
        note(loaded.preprocess.describe_pixels("which the file does not tell"))


if __name__ == "__main__":
    run(main)
