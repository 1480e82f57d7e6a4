"""How long a layer must take: the roofline model (Williams et al. 2009, CACM 52 (4)).

A layer can be no faster than its arithmetic at the machine's peak, and no faster than its tensors
can be read and written once.
"""

import math
from typing import NamedTuple

from mnv2.analysis.complexity import Layer

# Layers without activation: a block's last convolution, ResNet's shortcut.
LINEAR = ("project", "widen", "shortcut")


class Machine(NamedTuple):
    """A machine's two ceilings."""

    flops: float  # floating-point operations a second; a multiply-add is two
    bandwidth: float  # bytes a second, to and from memory

    @property
    def ridge(self) -> float:
        """FLOP per byte above which arithmetic is the limit, and below which memory is."""
        return self.flops / self.bandwidth


def traffic(layer: Layer, batch: int = 1, bytes_per_element: int = 4) -> int:
    """Bytes that a layer must read and write: input, kernel and output, each once."""
    return bytes_per_element * (batch * layer.activations + layer.weights)


def intensity(layer: Layer, batch: int = 1, bytes_per_element: int = 4) -> float:
    """FLOP per byte of traffic."""
    return 2 * batch * layer.multiply_adds / traffic(layer, batch, bytes_per_element)


def layer_seconds(
    layer: Layer, machine: Machine, batch: int = 1, bytes_per_element: int = 4, fused: bool = True
) -> float:
    """The least time of a layer on a machine.

    Unless `fused`, batch norm and activation are operations of their own, as in a framework that
    runs a network as it was trained: each reads and writes the layer's output once more.
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
