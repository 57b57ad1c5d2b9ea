"""Accuracy under shift, drawn: every corruption and severity, in against out of distribution, differences with their intervals."""

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from everycause.data.severities import GROUPS
from everycause.reporting.figures import color
from everycause.reporting.results import Results


def corruption_names(results: Results) -> list[str]:
    """The corruptions that were measured, in the order of the groups."""
    return [name for members in GROUPS.values() for name in members if results.has(f"accuracy/corruptions/{name}")]


def corruption_figure(results: Results) -> Figure:
    """A panel for each corruption, accuracy against severity, a line for each row."""
    names = corruption_names(results)
    severities = [s for s in range(1, 6) if results.has(f"accuracy/corruptions/{names[0]}/{s}")]
    columns = min(5, len(names))
    lines = -(-len(names) // columns)
    figure, axes = plt.subplots(lines, columns, figsize=(2.6 * columns, 2.1 * lines), sharex=True, sharey=True, squeeze=False)
    for axis in axes.flat[len(names) :]:
        axis.axis("off")
    for axis, name in zip(axes.flat, names, strict=False):
        for row in results.rows:
            values = [results.values(row, f"accuracy/corruptions/{name}/{s}").mean() for s in severities]
            axis.plot(severities, values, color=color(row), linewidth=1.2, marker="o", markersize=2.5, label=row)
        axis.set_title(name.replace("_", " "), fontsize=8)
        axis.set(ylim=(0, 1.02), xticks=severities)
    axes[0, -1].legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.02, 1.0))
    figure.supxlabel("severity", fontsize=9)
    figure.supylabel("accuracy", fontsize=9, x=0.06)
    return figure


def scatter_figure(results: Results) -> Figure:
    """Each row's accuracy out of distribution against its accuracy in distribution, a panel for each shift."""
    families = [name for name in results.families() if name not in ("test", "erasures") and name != "swaps"]
    figure, axes = plt.subplots(1, len(families), figsize=(3.1 * len(families), 3.0), squeeze=False)
    for axis, family in zip(axes[0], families, strict=True):
        for row in results.rows:
            inside = np.mean([results.predictions[row, seed].correctness("test").mean() for seed in results.seeds])
            outside = np.mean([results.predictions[row, seed].correctness(family).mean() for seed in results.seeds])
            axis.scatter(inside, outside, color=color(row), s=34, label=row)
        axis.set(title=family.replace("_", " "), xlabel="accuracy on test")
    axes[0, 0].set_ylabel("accuracy under shift")
    axes[0, -1].legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.02, 1.0))
    figure.subplots_adjust(wspace=0.3)
    return figure


def difference_figure(results: Results) -> Figure | None:
    """Each row's difference from the reference with its interval, in points, a panel for each family of splits."""
    families = list(results.families())
    found = {row: [results.difference(row, family) for family in families] for row in results.rows}
    rows = [row for row, intervals in found.items() if any(interval is not None for interval in intervals)]
    if not rows:
        return None
    figure, axes = plt.subplots(1, len(families), figsize=(2.1 * len(families), 0.3 * len(rows) + 1.2), sharey=True, squeeze=False)
    for number, (axis, family) in enumerate(zip(axes[0], families, strict=True)):
        axis.axvline(0, color="#222222", linewidth=1)
        for place, row in enumerate(reversed(rows)):
            interval = found[row][number]
            assert interval is not None
            axis.plot([100 * interval.low, 100 * interval.high], [place, place], color=color(row), linewidth=2)
            axis.plot(100 * interval.mean, place, marker="o", color=color(row), markersize=5)
        axis.set_title(family.replace("_", " "), fontsize=9)
        axis.set_yticks(range(len(rows)), list(reversed(rows)), fontsize=8)
    figure.supxlabel("points against continued, 95 % interval", fontsize=9, y=-0.04)
    return figure
