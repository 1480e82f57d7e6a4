"""Published numbers: the papers' and slim's tables, and latencies that others measured."""

from typing import Any, NamedTuple


class Checkpoint(NamedTuple):
    """One row of slim's table of checkpoints."""

    width: float
    resolution: int
    multiply_adds: int  # millions
    parameters: float  # millions
    top1: float  # per cent, ImageNet


# By width: the parameters, then multiply-adds and top-1 at 224, 192, 160, 128 and 96 pixels.
_SLIM: dict[str, dict[float, Any]] = {
    # github.com/tensorflow/models, research/slim/nets/mobilenet/README.md. Multiply-adds are
    # rounded down. Parameters are the weights of convolutions and classifier, without batch norm
    # and biases.
    "mobilenet_v2": {
        1.4: (6.06, (582, 75.0)),
        1.3: (5.34, (509, 74.4)),
        1.0: (3.47, (300, 71.8), (221, 70.7), (154, 68.8), (99, 65.3), (56, 60.3)),
        0.75: (2.61, (209, 69.8), (153, 68.7), (107, 66.4), (69, 63.2), (39, 58.8)),
        0.5: (1.95, (97, 65.4), (71, 63.9), (50, 61.0), (32, 57.7), (18, 51.2)),
        0.35: (1.66, (59, 60.3), (43, 58.2), (30, 55.7), (20, 50.8), (11, 45.5)),
    },
    # research/slim/nets/mobilenet_v1.md, with 1001 classes.
    "mobilenet_v1": {
        1.0: (4.24, (569, 70.9), (418, 70.0), (291, 68.0), (186, 65.2)),
        0.75: (2.59, (317, 68.4), (233, 67.2), (162, 65.3), (104, 62.1)),
        0.5: (1.34, (150, 63.3), (110, 61.7), (77, 59.1), (49, 56.3)),
        0.25: (0.47, (41, 49.8), (34, 47.7), (21, 45.5), (14, 41.5)),
    },
}
CHECKPOINTS = {
    network: tuple(
        Checkpoint(width, pixels, multiply_adds, parameters, top1)
        for width, (parameters, *of_width) in by_width.items()
        for pixels, (multiply_adds, top1) in zip((224, 192, 160, 128, 96), of_width, strict=False)
    )
    for network, by_width in _SLIM.items()
}

# The papers' tables: network, width, resolution, and millions of multiply-adds and parameters.
PAPERS = (
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


class Latency(NamedTuple):
    """The latencies of MobileNetV1 1.0 and V2 1.0 on one machine, measured at 224 pixels.

    The ceilings are the vendor's: the peak of the processors and the arithmetic that were used, in
    GFLOP/s, and the memory bandwidth, in GB/s.
    """

    machine: str
    framework: str
    v1: float | None  # v1 and v2 have the same unit of time; None if no measurement is known
    v2: float | None
    batch: int
    bytes_per_element: int
    fused: bool  # batch norm and activation are part of the convolutions
    ceilings: tuple[float, float]
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
        ("A100", "", None, None, 128, 2, FUSED, (312_000, 1555), ""),  # in bfloat16
        ("H100", "", None, None, 128, 2, FUSED, (989_000, 3352), ""),
        ("TPU v4", "", None, None, 128, 2, FUSED, (275_000, 1228), ""),
        ("TPU v5e", "", None, None, 128, 2, FUSED, (197_000, 819), ""),
    )
)
