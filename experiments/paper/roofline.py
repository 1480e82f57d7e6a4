"""The roofline model (Williams et al. 2009, CACM 52 (4)): the least time of a layer on a machine.

A layer cannot be faster than its arithmetic at the peak rate of the machine. It also cannot be
faster than reading and writing its tensors once. From this follows the ratio of V2's time to V1's,
which is compared to the ratio that others measured.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from experiments.common.experiment import Table
from mnv2.analysis import complexity
from mnv2.analysis.complexity import Layer
from mnv2.models import create_model

SIZE = 224  # pixels
# Layers without activation function: the last convolution of a block, and the shortcut of ResNet.
LINEAR = ("project", "widen", "shortcut")

# Machine and framework; the times of MobileNetV1 1.0 and V2 1.0 at 224 pixels, in the same unit, or
# None if no measurement is known; batch size; bytes per element; whether batch norm and activation
# are part of the convolutions; the vendor's GFLOP/s of the processors and the arithmetic that were
# used, and GB/s of the memory; the source of the times.
# Peak FLOP per cycle of a core in float32: 8 on ARM; on x86 16 with AVX, 32 with AVX2, 64 with
# AVX-512. The source for the Cortex-A53 does not name the device: 1.4 GHz and 6.4 GB/s are assumed.
# Sources that give images per second are entered as 1 / rate.
FUSED, SEPARATE = True, False
LATENCIES: tuple[tuple[Any, ...], ...] = (
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


class Machine(NamedTuple):
    flops: float  # floating-point operations per second; a multiply-add is two
    bandwidth: float  # bytes per second, to and from memory

    @property
    def ridge(self) -> float:
        """FLOP per byte: above this number arithmetic is the limit, below it memory is."""
        return self.flops / self.bandwidth


def traffic(layer: Layer, batch: int = 1, bytes_per_element: int = 4) -> int:
    """Returns the bytes that a layer must read and write: input, kernel and output, each once."""
    return bytes_per_element * (batch * layer.activations + layer.weights)


def intensity(layer: Layer, batch: int = 1) -> float:
    """Returns the FLOP per byte of traffic of a layer in float32."""
    return 2 * batch * layer.multiply_adds / traffic(layer, batch)


def layer_seconds(
    layer: Layer, machine: Machine, batch: int = 1, bytes_per_element: int = 4, fused: bool = True
) -> float:
    """Returns the least time of a layer on a machine, in seconds.

    If `fused` is False, batch norm and activation function are separate operations, as in a
    framework that runs a network as it was trained. Each of them then reads and writes the output
    of the layer once more.
    """
    seconds = max(
        2 * batch * layer.multiply_adds / machine.flops,
        traffic(layer, batch, bytes_per_element) / machine.bandwidth,
    )
    name = layer.name.split("/")[-1]
    if not fused and name != "classifier":
        passes = 1 if name in LINEAR else 2
        output = bytes_per_element * batch * math.prod(layer.output)
        seconds += 2 * passes * output / machine.bandwidth
    return seconds


class Ratio(NamedTuple):
    """V2's time divided by V1's on one machine."""

    machine: str
    framework: str
    ridge: float  # FLOP per byte
    predicted: float
    published: float | None
    source: str

    @property
    def agrees(self) -> bool:
        """Whether the prediction and the published ratio are on the same side of 1."""
        return self.published is not None and (self.predicted > 1) == (self.published > 1)


def ratios() -> list[Ratio]:
    networks = [
        complexity.layers(create_model(name), (SIZE, SIZE, 3))
        for name in ("mobilenet_v1", "mobilenet_v2")
    ]
    found = []
    for name, framework, v1, v2, *how, ceilings, source in LATENCIES:
        machine = Machine(*(1e9 * ceiling for ceiling in ceilings))
        of_v1, of_v2 = (
            sum(layer_seconds(layer, machine, *how) for layer in layers) for layers in networks
        )
        published = v2 / v1 if v1 else None
        found.append(Ratio(name, framework, machine.ridge, of_v2 / of_v1, published, source))
    return found


def table_of_ratios(rows: Sequence[Ratio]) -> Table:
    """Returns the table of the ratios; ✗ marks a wrong prediction."""
    header = (
        *("machine", "framework", "FLOP per byte at the ridge", "predicted", "published"),
        "source of the published ratio",
    )
    lines = []
    for row in rows:
        published = f"{row.published:.2f}" if row.published else ""
        mark = " ✗" if row.published and not row.agrees else ""
        numbers = (f"{row.ridge:.1f}", f"{row.predicted:.2f}{mark}", published)
        lines.append((row.machine, row.framework, *numbers, row.source))
    return Table("latency_machines", header, lines)
