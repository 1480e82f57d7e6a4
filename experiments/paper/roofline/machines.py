"""The ratio of V2's time to V1's on other machines: published, and predicted by the roofline model.

Nothing is measured here. `python -m experiments.paper.latency --machines` prints the table.
"""

from collections.abc import Sequence
from typing import NamedTuple

from experiments.common.published import ACCELERATORS, LATENCIES, Latency
from experiments.common.table import Table
from experiments.paper.roofline.model import Machine, layer_seconds
from mnv2.analysis import complexity
from mnv2.models import create_model

SIZE = 224  # pixels
HEADER = (
    "machine",
    "framework",
    "FLOP per byte at the ridge",
    "predicted",
    "published",
    "source of the published ratio",
)


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


def predict(machine: Machine, batch: int, bytes_per_element: int, fused: bool) -> float:
    """Predicts V2's time divided by V1's with the roofline model, at 224 pixels."""
    v1, v2 = (
        sum(
            layer_seconds(layer, machine, batch, bytes_per_element, fused)
            for layer in complexity.layers(create_model(name), (SIZE, SIZE, 3))
        )
        for name in ("mobilenet_v1", "mobilenet_v2")
    )
    return v2 / v1


def machines() -> list[Ratio]:
    """Predicts each published ratio; then those of ACCELERATORS, for 128 images in bfloat16."""
    return [_ratio(row, row.ceilings) for row in LATENCIES if row.ceilings] + [
        Ratio(name, "", machine.ridge, predict(machine, 128, 2, fused=True), None, "")
        for name, machine in ((name, _machine(of)) for name, of in ACCELERATORS.items())
    ]


def _ratio(row: Latency, ceilings: tuple[float, float]) -> Ratio:
    machine = _machine(ceilings)
    predicted = predict(machine, row.batch, row.bytes_per_element, row.fused)
    return Ratio(row.machine, row.framework, machine.ridge, predicted, row.v2 / row.v1, row.source)


def _machine(ceilings: tuple[float, float]) -> Machine:
    gflops, gigabytes = ceilings
    return Machine(1e9 * gflops, 1e9 * gigabytes)


def table(rows: Sequence[Ratio]) -> Table:
    """Returns the table of the ratios; ✗ marks a wrong prediction."""
    lines = []
    for row in rows:
        known = row.published is not None
        mark = " ✗" if known and not row.agrees else ""
        published = f"{row.published:.2f}" if known else ""
        numbers = (f"{row.ridge:.1f}", f"{row.predicted:.2f}{mark}", published)
        lines.append((row.machine, row.framework, *numbers, row.source))
    return Table("latency_machines", HEADER, lines)


def print_agreement(rows: Sequence[Ratio]) -> None:
    """Prints for how many machines the prediction has the right sign."""
    known = [row for row in rows if row.published is not None]
    right = sum(row.agrees for row in known)
    print(f"V2 faster or slower: predicted correctly for {right} of {len(known)} machines")
    unknown = ", ".join(row.machine for row in LATENCIES if row.ceilings is None)
    print(f"without published ceilings: {unknown}")
