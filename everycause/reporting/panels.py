"""One style of chart for everything that is compared row by row: names down the side, a panel for each measure.

Every value stands in a line of its own, so nothing hides behind anything, and names are read, not looked up by color.
Figures are as wide as a printed page, with type of at least eight points.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from everycause.shapes import Float

WIDTH = 7.4
"""Width of every figure in inches: that of the text on a printed page."""
TYPE = 8
"""Smallest type in points."""
PER_LINE = 4
"""Panels side by side."""
LEAST_SPAN = 0.05
"""Narrowest range of an axis, before the factor of its values."""
MOST = 40
"""Names down the side; of more, the 20 with the smallest and the 20 with the largest values of the first panel."""
FAINT, DARK = "#b8bec4", "#222222"


class Mark(NamedTuple):
    """What stands in one line of a panel."""

    value: float
    """Where the dot is; NaN draws nothing."""
    low: float | None = None
    high: float | None = None
    """Ends of an interval."""
    other: float | None = None
    """Where a hollow dot is, joined to the first by a thin line."""
    dots: Sequence[float] = ()
    """Small dots, such as single seeds."""


class Panel(NamedTuple):
    """One measure."""

    title: str
    marks: Mapping[str, Mark]
    """Name down the side → its mark. Names without a mark have an empty line."""
    line: float | None = None
    """Where a dashed line stands, such as chance or no difference."""
    scale: float = 100
    """Factor of all values: 100 for percent and points."""
    digits: int = 0
    """Decimal places of the printed values."""
    signed: bool = False
    """Whether printed values have a sign, as differences do."""


def row_panels(
    panels: Sequence[Panel], color: Callable[[str], str], axis_name: str = "", per_line: int = PER_LINE
) -> Figure:
    """A panel for each measure, some in a line.

    Args:
        panels: At least one.
        color: Gives each name its color.
        axis_name: What the values are, below the figure.
        per_line: Panels side by side.
    """
    names = shown_names(panels)
    columns = min(per_line, len(panels))
    lines = -(-len(panels) // columns)
    figure, axes = plt.subplots(
        lines, columns, figsize=(WIDTH, lines * (0.19 * len(names) + 0.75)), sharey=True, squeeze=False,
        layout="constrained",
    )  # fmt: skip
    for axis in axes.flat[len(panels) :]:
        axis.axis("off")
    for axis, panel in zip(axes.flat, panels, strict=False):
        _draw(axis, panel, names, color)
    for axis in axes[:, 0]:
        axis.set_yticks(range(len(names)), names, fontsize=TYPE)
        axis.set_ylim(len(names) - 0.4, -0.6)
    if axis_name:
        figure.supxlabel(axis_name, fontsize=TYPE)
    return figure


def shown_names(panels: Sequence[Panel]) -> list[str]:
    """All names of some panels in their order; of more than MOST those with extreme values in the first panel."""
    names = list(dict.fromkeys(name for panel in panels for name in panel.marks))
    if len(names) <= MOST:
        return names
    order = sorted(panels[0].marks, key=lambda name: panels[0].marks[name].value)
    chosen = {*order[: MOST // 2], *order[-(MOST // 2) :]}
    return [name for name in names if name in chosen]


def _draw(axis: Axes, panel: Panel, names: list[str], color: Callable[[str], str]) -> None:
    if panel.line is not None:
        axis.axvline(panel.scale * panel.line, color=DARK, linewidth=0.8, linestyle="--", zorder=0)
    for place, name in enumerate(names):
        axis.axhline(place, color="#eef0f2", linewidth=0.8, zorder=-1)
        mark = panel.marks.get(name)
        if mark is not None and not np.isnan(mark.value):
            _mark(axis, place, mark, panel.scale, color(name))
            text = f"{panel.scale * mark.value:{'+' if panel.signed else ''}.{panel.digits}f}"
            axis.annotate(
                text, (1.02, place), xycoords=("axes fraction", "data"), va="center", fontsize=TYPE, color=DARK
            )
    axis.set_title(panel.title, fontsize=TYPE + 1, loc="left")
    axis.tick_params(labelsize=TYPE, length=2)
    axis.tick_params(axis="y", length=0)
    axis.margins(x=0.08)
    low, high = axis.get_xlim()
    if (lacking := LEAST_SPAN * panel.scale - (high - low)) > 0:  # noise must not look like a difference
        axis.set_xlim(low - lacking / 2, high + lacking / 2)
    axis.locator_params(axis="x", nbins=4)
    for side in ("top", "right", "left"):
        axis.spines[side].set_visible(False)


def _mark(axis: Axes, place: int, mark: Mark, scale: float, shade: str) -> None:
    if mark.low is not None and mark.high is not None:
        axis.plot([scale * mark.low, scale * mark.high], [place, place], color=shade, linewidth=2, alpha=0.55)
    if mark.other is not None:
        axis.plot([scale * mark.value, scale * mark.other], [place, place], color=shade, linewidth=1)
        axis.plot(scale * mark.other, place, "o", markersize=4.5, markerfacecolor="white", markeredgecolor=shade)
    if len(mark.dots):
        axis.plot(scale * np.asarray(mark.dots), [place] * len(mark.dots), "o", color=shade, markersize=3, alpha=0.45)
    axis.plot(scale * mark.value, place, "o", color=shade, markersize=5)


def number_grid(
    values: Float[np.ndarray, "rows columns"], rows: Sequence[str], columns: Sequence[str], title: str, map_name: str,
    limits: tuple[float, float],
) -> Figure:  # fmt: skip
    """A grid of colored numbers, in percent or points, for two kinds of names.

    Args:
        values: What is printed; NaN leaves a field empty.
        rows: Names down the side.
        columns: Names above.
        title: Of the figure.
        map_name: Of a color map of matplotlib.
        limits: Values at the ends of the color map.
    """
    figure, axis = plt.subplots(figsize=(WIDTH, 0.26 * len(rows) + 1.3), layout="constrained")
    axis.imshow(values, cmap=map_name, vmin=limits[0], vmax=limits[1], aspect="auto")
    low, high = limits
    for (line, column), value in np.ndenumerate(values):
        if not np.isnan(value):
            share = (value - low) / (high - low)
            dark = abs(share - 0.5) > 0.35 if low < 0 else share < 0.4
            shade = "white" if dark else "black"
            axis.text(column, line, f"{value:.0f}", ha="center", va="center", fontsize=TYPE, color=shade)
    axis.set_yticks(range(len(rows)), rows, fontsize=TYPE)
    axis.xaxis.tick_top()
    axis.set_xticks(range(len(columns)), columns, fontsize=TYPE, rotation=40, ha="left")
    axis.tick_params(length=0)
    axis.set_title(title, fontsize=TYPE + 1, loc="left")
    for side in axis.spines.values():
        side.set_visible(False)
    return figure
