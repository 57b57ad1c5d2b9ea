"""Accuracy under shift, drawn: every corruption and severity, in against out of distribution, differences with their intervals."""

from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from codebirds.codes import Code
from everycause.data.corruptions import GROUPS
from everycause.reporting.results import Results
from everycause.shapes import Bool, UInt8

# MERGED DOC: """Figures of the report. PNG files carry no dates, so that their bytes depend on the results alone."""


matplotlib.use("Agg")


COLORS = {
    "base": "#888888", "continued": "#222222", "filters": "#d98c00", "filters_random": "#e8cf9f", "filters_permuted": "#b9a57f", "masks": "#0072b2", "masks_scene": "#56b4a9", "masks_random": "#a9c8e8",
    "joint": "#b3005e", "masks_rounds": "#5b2a86", "oracle_parts": "#3a9d23", "masks_grad_cam": "#7a6a53", "masks_factual": "#c46a3f", "erasing": "#c9b458",
    "cutmix": "#8c8c3a",
}  # fmt: skip


def causal_figures(results: Results, code: Code, cues: list[str]) -> dict[str, Figure]:
    """The figures that need a data set whose causes are known, by file name."""
    return {
        "completeness.png": completeness_profiles(results, code.length, 1 / code.num_classes),
        "reliance.png": reliance(results, cues),
        "scene_gap.png": scene_gap(results),
    }


def save(figure: Figure, path: Path) -> None:
    """Write a figure with reproducible bytes."""
    figure.savefig(path, dpi=110, bbox_inches="tight", metadata={"Software": None, "Creation Time": None})
    plt.close(figure)


def color(row: str) -> str:
    """A row's color, the same in every figure."""
    return COLORS.get(row, "#009e73")


def completeness_profiles(results: Results, erasures: int, chance: float) -> Figure:
    """Accuracy against the number of erased parts, mean and worst, with the optimum of the code."""
    figure, axes = plt.subplots(1, 2, figsize=(10, 4), sharey=True)
    steps = range(erasures)
    for axis, kind in zip(axes, ("mean", "worst"), strict=True):
        optimum = [results.values(results.rows[0], f"erasures/{e}/optimum").mean() for e in steps]
        axis.plot(steps, optimum, color="#009e73", linestyle="--", label="optimum (code)")
        axis.axhline(chance, color="#cccccc", linewidth=1, label="chance")
        for row in results.rows:
            values = np.stack([results.values(row, f"erasures/{e}/{kind}") for e in steps])
            axis.plot(steps, values.mean(axis=1), color=color(row), marker="o", markersize=4, label=row)
        axis.set(title=f"{kind} over the subsets", xlabel="parts erased", xticks=list(steps), ylim=(0, 1.03))
    axes[0].set_ylabel("accuracy")
    _legend(axes[1])
    return figure


def reliance(results: Results, cues: list[str]) -> Figure:
    """The share of each part in the Shapley values, per row."""
    figure, axis = plt.subplots(figsize=(8, 3.6))
    _grouped_bars(axis, results, [f"reliance/{part}" for part in range(len(cues))], cues)
    axis.axhline(1 / len(cues), color="#009e73", linestyle="--", linewidth=1)
    axis.set(ylabel="share of the Shapley value", title="Reliance per part (dashed: even)")
    return figure


def accuracies(results: Results) -> Figure:
    """Accuracy of each row on each split, with the scene gap."""
    names = [
        name
        for name in results.frame.columns
        if name.startswith("accuracy/") and not name.startswith("accuracy/corruptions/")
    ]
    names.sort(key=lambda name: name != "accuracy/test")
    figure, axis = plt.subplots(figsize=(11, 4))
    _grouped_bars(
        axis,
        results,
        names,
        [name.removeprefix("accuracy/").replace("scene_shift/", "scene: ").replace("_", " ") for name in names],
    )
    axis.set(ylabel="accuracy", ylim=(0, 1.02), title="Accuracy per split")
    return figure


def scene_gap(results: Results) -> Figure:
    """What a row loses when the scene no longer follows the class, and what the scene alone tells it."""
    figure, axis = plt.subplots(figsize=(6, 3.4))
    _grouped_bars(
        axis, results, ["scene_gap", "accuracy/scene_shift/scene_only"], ["test − free scene", "scene without a bird"]
    )
    axis.set(ylabel="accuracy", title="Reliance on the scene")
    return figure


def gallery(
    images: UInt8[np.ndarray, "n 3 h w"],
    masks: Bool[np.ndarray, "n h w"],
    counterfactuals: UInt8[np.ndarray, "n 3 h w"],
    titles: list[str],
) -> Figure:
    """Original, removed regions and counterfactual image, column by column."""
    count = len(images)
    figure, axes = plt.subplots(3, count, figsize=(1.45 * count, 4.6), squeeze=False)
    for column in range(count):
        picture = images[column].transpose(1, 2, 0)
        shaded = np.where(masks[column][..., None], 0.25 * picture + 0.75 * np.array([230, 20, 90]), picture).astype(
            np.uint8
        )
        for axis, shown in zip(
            axes[:, column], (picture, shaded, counterfactuals[column].transpose(1, 2, 0)), strict=True
        ):
            axis.imshow(shown, interpolation="nearest")
            axis.set(xticks=[], yticks=[])
        axes[0, column].set_title(titles[column], fontsize=7)
    for axis, label in zip(axes[:, 0], ("image", "removed", "counterfactual"), strict=True):
        axis.set_ylabel(label, fontsize=8)
    figure.subplots_adjust(wspace=0.05, hspace=0.05)
    return figure


def contact_sheet(rows: dict[str, UInt8[np.ndarray, "n 3 h w"]]) -> Figure:
    """A line of pictures per split."""
    lines = [np.concatenate(list(images.transpose(0, 2, 3, 1)), axis=1) for images in rows.values()]
    figure, axes = plt.subplots(len(lines), 1, figsize=(12, 0.68 * len(lines)))
    for axis, name, line in zip(axes, rows, lines, strict=True):
        axis.imshow(line, interpolation="nearest")
        axis.set(xticks=[], yticks=[])
        axis.set_ylabel(name, rotation=0, ha="right", va="center", fontsize=9)
    figure.subplots_adjust(hspace=0.04)
    return figure


def _grouped_bars(axis: Axes, results: Results, metrics: list[str], labels: list[str]) -> None:
    """Bars of every row for every metric; whiskers are the standard deviation over seeds."""
    width = 0.8 / len(results.rows)
    for number, row in enumerate(results.rows):
        values = np.stack([results.values(row, metric) for metric in metrics])
        whiskers = values.std(axis=1, ddof=1) if values.shape[1] > 1 else None
        positions = np.arange(len(metrics)) + (number - (len(results.rows) - 1) / 2) * width
        axis.bar(
            positions,
            values.mean(axis=1),
            width,
            yerr=whiskers,
            color=color(row),
            label=row,
            error_kw={"linewidth": 0.8},
        )
    rotation = 30 if len(labels) > 6 else 0
    axis.set_xticks(
        np.arange(len(metrics)), labels, rotation=rotation, ha="right" if rotation else "center", fontsize=8
    )
    _legend(axis)


def _legend(axis: Axes) -> None:
    """The rows, beside the axes, where no bar can hide behind them."""
    axis.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1.0))


def corruption_names(results: Results) -> list[str]:
    """The corruptions that were measured, in the order of the groups."""
    return [name for members in GROUPS.values() for name in members if results.has(f"accuracy/corruptions/{name}")]


def corruption_figure(results: Results) -> Figure:
    """A panel for each corruption, accuracy against severity, a line for each row."""
    names = corruption_names(results)
    severities = [s for s in range(1, 6) if results.has(f"accuracy/corruptions/{names[0]}/{s}")]
    columns = min(5, len(names))
    lines = -(-len(names) // columns)
    figure, axes = plt.subplots(
        lines, columns, figsize=(2.6 * columns, 2.1 * lines), sharex=True, sharey=True, squeeze=False
    )
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
    figure, axes = plt.subplots(
        1, len(families), figsize=(2.1 * len(families), 0.3 * len(rows) + 1.2), sharey=True, squeeze=False
    )
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
