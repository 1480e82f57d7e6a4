"""Published numbers: the papers' and slim's tables, and latencies that others measured."""

from typing import NamedTuple


class Checkpoint(NamedTuple):
    """One row of slim's table of checkpoints."""

    width: float
    resolution: int
    multiply_adds: int  # millions
    parameters: float  # millions
    top1: float  # per cent, ImageNet


# github.com/tensorflow/models, research/slim/nets/mobilenet/README.md. Multiply-adds are rounded
# down. Parameters are the weights of convolutions and classifier, without batch norm and biases.
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
