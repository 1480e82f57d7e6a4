"""Published numbers: the papers' and slim's tables, and latencies that others measured."""

from collections.abc import Mapping
from typing import NamedTuple


class Checkpoint(NamedTuple):
    """One row of slim's table of checkpoints."""

    width: float
    resolution: int
    multiply_adds: int  # millions
    parameters: float  # millions
    top1: float  # per cent, ImageNet


def _checkpoints(
    by_width: Mapping[float, tuple[float, Mapping[int, tuple[int, float]]]],
) -> tuple[Checkpoint, ...]:
    """Makes the rows of {width: (parameters, {resolution: (multiply-adds, top-1)})}."""
    return tuple(
        Checkpoint(width, resolution, multiply_adds, parameters, top1)
        for width, (parameters, of_width) in by_width.items()
        for resolution, (multiply_adds, top1) in of_width.items()
    )


# github.com/tensorflow/models, research/slim/nets/mobilenet/README.md. Multiply-adds are rounded
# down. Parameters are the weights of convolutions and classifier, without batch norm and biases.
MOBILENET_V2 = _checkpoints(
    {
        1.4: (6.06, {224: (582, 75.0)}),
        1.3: (5.34, {224: (509, 74.4)}),
        1.0: (
            3.47,
            {224: (300, 71.8), 192: (221, 70.7), 160: (154, 68.8), 128: (99, 65.3), 96: (56, 60.3)},
        ),
        0.75: (
            2.61,
            {224: (209, 69.8), 192: (153, 68.7), 160: (107, 66.4), 128: (69, 63.2), 96: (39, 58.8)},
        ),
        0.5: (
            1.95,
            {224: (97, 65.4), 192: (71, 63.9), 160: (50, 61.0), 128: (32, 57.7), 96: (18, 51.2)},
        ),
        0.35: (
            1.66,
            {224: (59, 60.3), 192: (43, 58.2), 160: (30, 55.7), 128: (20, 50.8), 96: (11, 45.5)},
        ),
    }
)
# research/slim/nets/mobilenet_v1.md, with 1001 classes.
MOBILENET_V1 = _checkpoints(
    {
        1.0: (4.24, {224: (569, 70.9), 192: (418, 70.0), 160: (291, 68.0), 128: (186, 65.2)}),
        0.75: (2.59, {224: (317, 68.4), 192: (233, 67.2), 160: (162, 65.3), 128: (104, 62.1)}),
        0.5: (1.34, {224: (150, 63.3), 192: (110, 61.7), 160: (77, 59.1), 128: (49, 56.3)}),
        0.25: (0.47, {224: (41, 49.8), 192: (34, 47.7), 160: (21, 45.5), 128: (14, 41.5)}),
    }
)


class PaperRow(NamedTuple):
    """One row of a table in the papers: a network and its printed cost."""

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


class Latency(NamedTuple):
    """The latencies of MobileNetV1 1.0 and V2 1.0 on one machine, measured at 224 pixels.

    The ceilings are the vendor's: the peak of the processors and the arithmetic that were used, in
    GFLOP/s, and the memory bandwidth, in GB/s. They are None if they are not published.
    """

    machine: str
    framework: str
    v1: float  # v1 and v2 have the same unit of time
    v2: float
    batch: int
    bytes_per_element: int
    fused: bool  # batch norm and activation are part of the convolutions
    ceilings: tuple[float, float] | None
    source: str


# Peak FLOP per cycle of a core in float32: 8 on ARM; on x86 16 with AVX, 32 with AVX2, 64 with
# AVX-512. The source for the Cortex-A53 does not name the device: 1.4 GHz and 6.4 GB/s are assumed.
# Sources that give images per second are entered as 1 / rate.
FUSED, SEPARATE = True, False
LATENCIES = tuple(
    Latency(*row)
    for row in (
        ("Pixel 1, one core", "TF-Lite", 113, 75, 1, 4, FUSED, (17.2, 29.8), "V2 paper, table 4"),
        ("Pixel 2, one core", "TF-Lite", 160.1, 117, 1, 4, FUSED, (18.8, 29.8), "TF-Lite models"),
        ("Pixel 2, uint8", "TF-Lite", 70.2, 80.3, 1, 1, FUSED, (75.2, 29.8), "TF-Lite models"),
        ("Snapdragon 810, one core", "", 1 / 6.5, 1 / 8.9, 1, 4, FUSED, (16, 25.6), "ShuffleNetV2"),
        ("Cortex-A53, one core", "ncnn", 558, 492, 1, 4, FUSED, (11.2, 6.4), "ncnn#273"),
        ("Cortex-A53, four cores", "ncnn", 212, 215, 1, 4, FUSED, (44.8, 6.4), "ncnn#273"),
        ("i7-3770K", "MXNet", 26, 37, 1, 4, SEPARATE, (224, 25.6), "gluon-cv#483"),
        ("Xeon E5-2658 v2", "Caffe", 148, 185, 1, 4, SEPARATE, (384, 59.7), "MobileNet-Caffe#52"),
        ("i9-10940X", "PyTorch dynamo", 4.013, 5.299, 1, 4, FUSED, (2957, 94), "timm"),
        ("EPYC, 92 cores", "Keras", 22.6, 25.9, 32, 4, SEPARATE, (6624, 204.8), "keras.io"),
        ("A100", "Keras (TF32)", 3.4, 3.8, 32, 4, SEPARATE, (156_000, 1555), "keras.io"),
        ("GTX 1050", "Keras", 11, 14, 1, 4, SEPARATE, (1862, 112), "a reader's note"),
        ("GTX 1070 Ti", "Caffe", 1 / 181, 1 / 100, 1, 4, SEPARATE, (8186, 256), "SSDLite#8"),
        ("GTX 1080 Ti", "", 1 / 247, 1 / 180, 8, 4, SEPARATE, (11_340, 484), "ShuffleNetV2"),
        ("RTX 3090", "PyTorch", 1 / 10_803, 1 / 8_630, 1024, 2, SEPARATE, (71_000, 936), "timm"),
        ("RTX 4090", "PyTorch", 1 / 13_760, 1 / 10_810, 1024, 2, SEPARATE, (165_200, 1008), "timm"),
        ("the same, NHWC", "", 1 / 14_689, 1 / 11_768, 512, 2, SEPARATE, (165_200, 1008), "timm"),
        ("MacBook", "PyTorch", 247, 292, 1, 4, SEPARATE, None, "tonylins#6"),
        ("iPhone 7", "Core ML", 35, 53, 1, 2, FUSED, None, "ImageClassification-CoreML"),
        ("iPhone 12 Pro", "Core ML", 17, 15, 1, 2, FUSED, None, "ImageClassification-CoreML"),
    )
)

# Machines for which no measurement of both is known: GFLOP/s in bfloat16, GB/s.
ACCELERATORS = {
    "A100": (312_000, 1555),
    "H100": (989_000, 3352),
    "TPU v4": (275_000, 1228),
    "TPU v5e": (197_000, 819),
}
