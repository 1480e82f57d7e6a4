"""Numbers as printed: in the papers, and in the tables beside their authors' code."""

from typing import NamedTuple


class Checkpoint(NamedTuple):
    """A row of slim's table of checkpoints."""

    width: float
    resolution: int
    multiply_adds: int  # millions
    parameters: float  # millions
    top1: float  # per cent, ImageNet


# github.com/tensorflow/models, research/slim/nets/mobilenet/README.md. Multiply-adds are rounded
# down, parameters are weights of convolutions and classifier without batch norm and biases.
MOBILENET_V2 = tuple(
    Checkpoint(*row)
    for row in (
        (1.4, 224, 582, 6.06, 75.0),
        (1.3, 224, 509, 5.34, 74.4),
        (1.0, 224, 300, 3.47, 71.8),
        (1.0, 192, 221, 3.47, 70.7),
        (1.0, 160, 154, 3.47, 68.8),
        (1.0, 128, 99, 3.47, 65.3),
        (1.0, 96, 56, 3.47, 60.3),
        (0.75, 224, 209, 2.61, 69.8),
        (0.75, 192, 153, 2.61, 68.7),
        (0.75, 160, 107, 2.61, 66.4),
        (0.75, 128, 69, 2.61, 63.2),
        (0.75, 96, 39, 2.61, 58.8),
        (0.5, 224, 97, 1.95, 65.4),
        (0.5, 192, 71, 1.95, 63.9),
        (0.5, 160, 50, 1.95, 61.0),
        (0.5, 128, 32, 1.95, 57.7),
        (0.5, 96, 18, 1.95, 51.2),
        (0.35, 224, 59, 1.66, 60.3),
        (0.35, 192, 43, 1.66, 58.2),
        (0.35, 160, 30, 1.66, 55.7),
        (0.35, 128, 20, 1.66, 50.8),
        (0.35, 96, 11, 1.66, 45.5),
    )
)

# research/slim/nets/mobilenet_v1.md, with 1001 classes.
MOBILENET_V1 = tuple(
    Checkpoint(*row)
    for row in (
        (1.0, 224, 569, 4.24, 70.9),
        (1.0, 192, 418, 4.24, 70.0),
        (1.0, 160, 291, 4.24, 68.0),
        (1.0, 128, 186, 4.24, 65.2),
        (0.75, 224, 317, 2.59, 68.4),
        (0.75, 192, 233, 2.59, 67.2),
        (0.75, 160, 162, 2.59, 65.3),
        (0.75, 128, 104, 2.59, 62.1),
        (0.5, 224, 150, 1.34, 63.3),
        (0.5, 192, 110, 1.34, 61.7),
        (0.5, 160, 77, 1.34, 59.1),
        (0.5, 128, 49, 1.34, 56.3),
        (0.25, 224, 41, 0.47, 49.8),
        (0.25, 192, 34, 0.47, 47.7),
        (0.25, 160, 21, 0.47, 45.5),
        (0.25, 128, 14, 0.47, 41.5),
    )
)


class PaperRow(NamedTuple):
    """A row of one of the papers' tables: a network of theirs and its printed cost."""

    table: str
    network: str
    width: float
    resolution: int
    multiply_adds: int  # millions
    parameters: float  # millions


PAPERS = tuple(
    PaperRow(*row)
    for row in (
        ("V2 table 4", "mobilenet_v2", 1.0, 224, 300, 3.4),
        ("V2 table 4", "mobilenet_v2", 1.4, 224, 585, 6.9),
        ("V2 table 4", "mobilenet_v1", 1.0, 224, 575, 4.2),
        ("V1 table 4", "mobilenet_v1", 1.0, 224, 569, 4.2),
        ("V1 table 5", "mobilenet_v1", 0.75, 224, 325, 2.6),
        ("V1 table 6", "mobilenet_v1", 0.5, 224, 149, 1.3),
        ("V1 table 6", "mobilenet_v1", 0.25, 224, 41, 0.5),
        ("V1 table 7", "mobilenet_v1", 1.0, 192, 418, 4.2),
        ("V1 table 7", "mobilenet_v1", 1.0, 160, 290, 4.2),
        ("V1 table 7", "mobilenet_v1", 1.0, 128, 186, 4.2),
        ("V1 table 9", "mobilenet_v1", 0.5, 160, 76, 1.32),
    )
)
