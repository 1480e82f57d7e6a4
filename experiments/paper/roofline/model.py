"""The least time of a layer by the roofline model (Williams et al. 2009, CACM 52 (4)).

A layer cannot be faster than its arithmetic at the peak rate of the machine. It also cannot be
faster than reading and writing its tensors once.
"""

import math
from typing import NamedTuple

from mnv2.analysis.complexity import Layer

# Layers without activation function: the last convolution of a block, and the shortcut of ResNet.
LINEAR = ("project", "widen", "shortcut")


class Machine(NamedTuple):
    """The two limits of a machine: arithmetic and memory bandwidth."""

    flops: float  # floating-point operations per second; a multiply-add is two
    bandwidth: float  # bytes per second, to and from memory

    @property
    def ridge(self) -> float:
        """FLOP per byte: above this number arithmetic is the limit, below it memory is."""
        return self.flops / self.bandwidth


def traffic(layer: Layer, batch: int = 1, bytes_per_element: int = 4) -> int:
    """Returns the bytes that a layer must read and write: input, kernel and output, each once."""
    return bytes_per_element * (batch * layer.activations + layer.weights)


def intensity(layer: Layer, batch: int = 1, bytes_per_element: int = 4) -> float:
    """Returns the arithmetic intensity of a layer: FLOP per byte of traffic."""
    return 2 * batch * layer.multiply_adds / traffic(layer, batch, bytes_per_element)


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
