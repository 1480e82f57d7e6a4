"""What is MobileNetV2's block, beside ResNet's and V1's? Table 1 and figures 2 and 3 of the paper.

Draws three blocks of mnv2/models/blocks.py, each from left to right. A slab is a tensor: its faces
are height and width, its thickness is the number of channels. A linear tensor is hatched.
"""

from collections.abc import Sequence
from typing import Any

import matplotlib.colors
import matplotlib.figure
from matplotlib.axes import Axes
from matplotlib.patches import Circle, Polygon

from experiments.common.experiment import experiment_parser, run

HEIGHT, DEPTH = 1.0, 0.38  # of a slab, as drawn
GAP = 1.75  # between slabs: room for an arrow and the names of a layer
ROW = 2.55  # from one block to the next
ACTIVATED, LINEAR, INK = "#4c8fbd", "#f2b661", "#20303c"
SHADES = (0.0, 0.35, 0.18)  # front, top and side: the share of white


# Title; tensors; the activation of a sum with the input (None without one), and a note on it. A
# tensor is a slab: shape, thickness as drawn, the layer that computes it, its activation.
BLOCKS: tuple[tuple[str, tuple[tuple[str, float, str, str], ...], str | None, str], ...] = (
    (
        "MobileNetV2: inverted residual with linear bottleneck",
        (
            ("h × w × k", 0.25, "", "linear"),
            ("h × w × tk", 1.5, "1×1\nexpand", "ReLU6"),
            ("h/s × w/s × tk", 1.5, "3×3 depthwise\nstride s", "ReLU6"),
            ("h/s × w/s × k′", 0.25, "1×1\nproject", "linear"),
        ),
        *("", "if s = 1 and k′ = k"),
    ),
    (
        "ResNet: bottleneck (“hourglass”)",
        (
            ("h × w × k", 1.2, "", ""),
            ("h × w × k′/4", 0.3, "1×1\nnarrow", "ReLU"),
            ("h/s × w/s × k′/4", 0.3, "3×3\nstride s", "ReLU"),
            ("h/s × w/s × k′", 1.2, "1×1\nwiden", "linear"),
        ),
        *("ReLU", "1×1, stride s, if the shapes differ"),
    ),
    (
        "MobileNetV1: depthwise separable",
        (
            ("h × w × k", 0.7, "", ""),
            ("h/s × w/s × k", 0.7, "3×3 depthwise\nstride s", "ReLU6"),
            ("h/s × w/s × k′", 1.0, "1×1", "ReLU6"),
        ),
        *(None, ""),
    ),
)


def draw_face(
    axis: Axes, corners: Sequence[tuple[float, float]], activation: str, white: float = 0
) -> None:
    """Draws one face of a slab, in its color, mixed with a share of white, and hatching."""
    color, hatch = (LINEAR, "////") if activation == "linear" else (ACTIVATED, "")
    mixed = [1 - (1 - x) * (1 - white) for x in matplotlib.colors.to_rgb(color)]
    polygon = Polygon(corners, facecolor=mixed, edgecolor=INK, linewidth=0.8, hatch=hatch)
    polygon.set_hatch_linewidth(0.4)
    axis.add_patch(polygon)


def draw_slab(axis: Axes, x: float, y: float, w: float, activation: str) -> None:
    """Draws a tensor of thickness w whose lower left corner is (x, y)."""
    h, d = HEIGHT, DEPTH
    faces = (
        ((x, y), (x + w, y), (x + w, y + h), (x, y + h)),
        ((x, y + h), (x + w, y + h), (x + w + d, y + h + d), (x + d, y + h + d)),
        ((x + w, y), (x + w + d, y + d), (x + w + d, y + h + d), (x + w, y + h)),
    )
    for corners, white in zip(faces, SHADES, strict=True):
        draw_face(axis, corners, activation, white)


def draw_arrow(axis: Axes, *points: tuple[float, float]) -> None:
    xs, ys = zip(*points[:-1], strict=True)
    axis.plot(xs, ys, color=INK, linewidth=1.1, solid_capstyle="butt")
    style = {"arrowstyle": "-|>", "color": INK, "linewidth": 1.1, "shrinkA": 0, "shrinkB": 0}
    axis.annotate("", points[-1], points[-2], arrowprops=style)


def draw_block(
    axis: Axes, y: float, title: str, tensors: Any, total: str | None, note: str
) -> None:
    """Draws a row whose slabs stand on the height y."""
    middle = y + (HEIGHT + DEPTH) / 2
    under: dict[str, Any] = {"ha": "center", "va": "top", "fontsize": 8}
    above = 0.2 if total is None else 0.42
    axis.text(0, y + HEIGHT + DEPTH + above, title, fontsize=10.5, weight="bold")
    x = 0.0
    for shape, thickness, layer, activation in tensors:
        if layer:
            draw_arrow(axis, (x + 0.12, middle), (x + GAP - 0.12, middle))
            center = x + GAP / 2
            axis.text(center, middle + 0.1, layer, ha="center", va="bottom", fontsize=8)
            axis.text(center, middle - 0.1, activation, style="italic", **under)
            x += GAP
        draw_slab(axis, x, y, thickness, activation)
        axis.text(x + (thickness + DEPTH) / 2, y - 0.12, shape, **under)
        x += thickness + DEPTH
    if total is None:
        return
    plus, top = x + 0.75, y + HEIGHT + DEPTH + 0.22
    start = (tensors[0][1] + DEPTH) / 2 + DEPTH / 2
    draw_arrow(axis, (x + 0.12, middle), (plus - 0.17, middle))
    draw_arrow(axis, (start, y + HEIGHT + DEPTH), (start, top), (plus, top), (plus, middle + 0.17))
    axis.add_patch(Circle((plus, middle), 0.17, facecolor="white", edgecolor=INK, linewidth=1.1))
    axis.text(plus, middle, "+", ha="center", va="center_baseline", fontsize=11)
    axis.text(plus - 0.1, top + 0.08, note, ha="right", va="bottom", fontsize=8)
    draw_arrow(axis, (plus + 0.17, middle), (plus + 1.0, middle))
    axis.text(plus + 0.58, middle - 0.1, total, style="italic", **under)


def main() -> None:
    path = experiment_parser(__file__, __doc__, "out", "docs/block.png").parse_args().out
    figure = matplotlib.figure.Figure(figsize=(10, 6), layout="constrained")
    axis = figure.subplots()
    for i, block in enumerate(BLOCKS):
        draw_block(axis, -i * ROW, *block)
    for i, name in enumerate(("after an activation", "linear")):
        x, y = 8.2, -(len(BLOCKS) - 1) * ROW + 0.75 - 0.5 * i
        draw_face(axis, ((x, y), (x + 0.4, y), (x + 0.4, y + 0.28), (x, y + 0.28)), name)
        axis.text(x + 0.6, y + 0.14, name, va="center", fontsize=8)
    axis.set(aspect="equal", xlim=(-0.1, 12.3), ylim=(0.1 - len(BLOCKS) * ROW + 2, 2.05))
    axis.axis("off")
    figure.savefig(path, dpi=130)
    print(f"written: {path}")


if __name__ == "__main__":
    run(main)
