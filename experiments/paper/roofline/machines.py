"""The ratio of V2's time to V1's on other machines: published, and predicted by the roofline model.

Nothing is measured here.
"""

from collections.abc import Sequence
from typing import NamedTuple

from experiments.common.published import LATENCIES
from experiments.common.table import Table
from experiments.paper.roofline.model import Machine, layer_seconds
from mnv2.analysis import complexity
from mnv2.models import create_model

SIZE = 224  # pixels


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


def machines() -> list[Ratio]:
    """Predicts the ratio of each machine with the roofline model, at 224 pixels."""
    v1, v2 = (
        complexity.layers(create_model(name), (SIZE, SIZE, 3))
        for name in ("mobilenet_v1", "mobilenet_v2")
    )
    found = []
    for row in LATENCIES:
        machine = Machine(*(1e9 * ceiling for ceiling in row.ceilings))
        how = (machine, row.batch, row.bytes_per_element, row.fused)
        seconds = [sum(layer_seconds(layer, *how) for layer in layers) for layers in (v1, v2)]
        published = row.v2 / row.v1 if row.v1 and row.v2 else None
        ratios = (machine.ridge, seconds[1] / seconds[0], published)
        found.append(Ratio(row.machine, row.framework, *ratios, row.source))
    return found


def table(rows: Sequence[Ratio]) -> Table:
    """Returns the table of the ratios; ✗ marks a wrong prediction."""
    lines = []
    for row in rows:
        known = row.published is not None
        mark = " ✗" if known and not row.agrees else ""
        published = f"{row.published:.2f}" if known else ""
        numbers = (f"{row.ridge:.1f}", f"{row.predicted:.2f}{mark}", published)
        lines.append((row.machine, row.framework, *numbers, row.source))
    header = (
        *("machine", "framework", "FLOP per byte at the ridge", "predicted", "published"),
        "source of the published ratio",
    )
    return Table("latency_machines", header, lines)
