"""Charts of the report. PNG files carry no dates, so that their bytes depend on the results alone."""

import logging
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from everycause.reporting.colors import COLORS, OPTIMUM, OTHER, SELECTOR_COLORS
from everycause.reporting.results import DetectionReport, Faithfulness, Measures, Results
from everycause.reporting.tables import DETECTORS

log = logging.getLogger(__name__)
DEFAULT_FONT = "DejaVu Sans"
DETECTOR_COLORS = dict(
    zip(DETECTORS, ("#d98c00", "#e8cf9f", "#b9a57f", "#7a6a53", "#b3005e", "#0072b2", "#56b4e9"), strict=True)
)


@contextmanager
def readable(texts: Iterable[str]) -> Iterator[None]:
    """Draw and save figures within the block so that these texts, which come from the user's data, can be read."""
    with matplotlib.rc_context(legible(texts)), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")  # said once by legible
        yield


def legible(texts: Iterable[str]) -> dict[str, Any]:
    """Settings of matplotlib with which these texts, which come from the user's data, can be read.

    `$` stands for itself instead of beginning a formula. Characters that the default font lacks are drawn in an
    installed font that has them; where there is none, one warning says which are missing.
    """
    characters = {character for text in texts for character in text if character.isprintable()}
    fonts, missing = fonts_for(characters)
    if missing:
        shown = "".join(sorted(missing))
        log.warning(
            "no installed font has the characters '%s' of class or split names, so figures show boxes for them: "
            "install one that has, such as Noto Sans CJK for Chinese, Japanese and Korean",
            shown if len(shown) <= 20 else f"{shown[:20]}…",
        )
    return {"text.parse_math": False, "font.family": fonts}


def fonts_for(characters: set[str]) -> tuple[list[str], set[str]]:
    """The default font and installed fonts for characters that it lacks, and the characters that no font has."""
    fonts, missing = [DEFAULT_FONT], characters - _characters(font_manager.findfont(DEFAULT_FONT))
    if missing:
        installed = font_manager.fontManager.ttflist
        upright = [font for font in installed if font.style == "normal" and font.weight in (400, "normal", "regular")]
        for font in sorted(upright, key=lambda font: (font.name, font.fname)):
            if font.name.startswith("Last Resort"):  # has a box for every character
                continue
            if found := missing & _characters(font.fname):
                fonts, missing = [*fonts, font.name], missing - found
    return fonts, missing


def _characters(file: str) -> set[str]:
    try:
        return {chr(code) for code in font_manager.get_font(file).get_charmap()}
    except (OSError, RuntimeError):
        return set()  # a damaged font file is no font


def save(figure: Figure, path: Path) -> None:
    """Write a figure with reproducible bytes."""
    figure.savefig(path, dpi=110, bbox_inches="tight", metadata={"Software": None, "Creation Time": None})
    plt.close(figure)


def color(row: str) -> str:
    """A row's color."""
    return COLORS.get(row, OTHER)


def split_name(name: str) -> str:
    """A split in words."""
    return name.replace("scene_shift/", "scene: ").replace("swaps/", "swaps: ").replace("_", " ")


def accuracies(results: Results) -> Figure:
    """Accuracy of each row on each split."""
    metrics = results.accuracy_metrics()
    metrics = [name for name in metrics if not name.startswith("accuracy/corruptions/")]
    figure, axis = plt.subplots(figsize=(max(6, 1.1 * len(metrics)), 4))
    _grouped_bars(axis, results, metrics, [split_name(name.removeprefix("accuracy/")) for name in metrics])
    axis.set(ylabel="accuracy", ylim=(0, 1.02), title="Accuracy per split")
    return figure


def completeness_profiles(results: Results, code: dict[str, Any]) -> Figure:
    """Accuracy against the number of erased parts, mean and worst, with the best that the code allows."""
    figure, axes = plt.subplots(1, 2, figsize=(10, 4), sharey=True)
    steps = range(code["length"])
    for axis, kind in zip(axes, ("mean", "worst"), strict=True):
        optimum = [results.values(results.rows[0], f"erasures/{e}/optimum").mean() for e in steps]
        axis.plot(steps, optimum, color=OPTIMUM, linestyle="--", label="optimum (code)")
        axis.axhline(1 / code["num_classes"], color="#cccccc", linewidth=1, label="chance")
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
    axis.axhline(1 / len(cues), color=OPTIMUM, linestyle="--", linewidth=1)
    axis.set(ylabel="share of the Shapley value", title="Reliance per part (dashed: even)")
    return figure


def scene_gap(results: Results, classes: int) -> Figure:
    """The accuracy that a row loses when the scene says nothing, and that on scenes alone, beside chance."""
    figure, axis = plt.subplots(figsize=(6, 3.4))
    labels = ["test − free scene", "scene without a bird"]
    _grouped_bars(axis, results, ["scene_gap", "accuracy/scene_shift/scene_only"], labels)
    axis.plot([0.5, 1.5], [1 / classes] * 2, color="#222222", linestyle="--", linewidth=1)
    axis.set(
        ylabel="accuracy", ylim=(None, max(0.25, axis.get_ylim()[1])), title="Reliance on the scene (dashed: chance)"
    )
    return figure


def corruption_figure(results: Results) -> Figure:
    """A panel for each corruption, accuracy against severity, a line for each row."""
    cells = [view.split("/")[1:] for view in results.views if view.startswith("corruptions/")]
    names = list(dict.fromkeys(name for name, _ in cells))
    severities = sorted({int(severity) for _, severity in cells})
    columns = min(5, len(names))
    lines = -(-len(names) // columns)
    size = (2.6 * columns, 2.1 * lines)
    figure, axes = plt.subplots(lines, columns, figsize=size, sharex=True, sharey=True, squeeze=False)
    for axis in axes.flat[len(names) :]:
        axis.axis("off")
    for axis, name in zip(axes.flat, names, strict=False):
        for row in results.rows:
            values = [results.values(row, f"accuracy/corruptions/{name}/{s}").mean() for s in severities]
            axis.plot(severities, values, color=color(row), linewidth=1.2, marker="o", markersize=2.5, label=row)
        axis.set_title(name.replace("_", " "), fontsize=8)
        axis.set(ylim=(0, 1.02), xticks=severities)
    _legend(axes[0, -1])
    figure.supxlabel("severity", fontsize=9)
    figure.supylabel("accuracy", fontsize=9, x=0.06)
    return figure


def scatter_figure(results: Results) -> Figure | None:
    """Each row's accuracy under shift against its accuracy on the test split, a panel for each shift."""
    families = [name for name in results.families() if name not in ("test", "erasures", "swaps")]
    if not families:
        return None
    figure, axes = plt.subplots(1, len(families), figsize=(3.1 * len(families), 3.0), squeeze=False)
    for axis, family in zip(axes[0], families, strict=True):
        for row in results.rows:
            point = results.accuracy(row, "test"), results.accuracy(row, family)
            axis.scatter(*point, color=color(row), s=34, alpha=0.85, edgecolors="white", linewidths=0.5, label=row)
        axis.set(title=split_name(family), xlabel="accuracy on test")
    axes[0, 0].set_ylabel("accuracy under shift")
    _legend(axes[0, -1])
    figure.subplots_adjust(wspace=0.3)
    return figure


def difference_figure(results: Results) -> Figure | None:
    """Each row's difference from the reference with its interval, in points, a panel for each family of splits."""
    families = list(results.families())
    found = {row: [results.difference(row, family) for family in families] for row in results.rows}
    rows = [row for row, intervals in found.items() if any(interval is not None for interval in intervals)]
    if not rows:
        return None
    size = (2.1 * len(families), 0.3 * len(rows) + 1.2)
    figure, axes = plt.subplots(1, len(families), figsize=size, sharey=True, squeeze=False)
    for number, (axis, family) in enumerate(zip(axes[0], families, strict=True)):
        axis.axvline(0, color="#222222", linewidth=1)
        for place, row in enumerate(reversed(rows)):
            interval = found[row][number]
            assert interval is not None
            axis.plot([100 * interval.low, 100 * interval.high], [place, place], color=color(row), linewidth=2)
            axis.plot(100 * interval.mean, place, marker="o", color=color(row), markersize=5)
        axis.set_title(split_name(family), fontsize=9)
        axis.set_yticks(range(len(rows)), list(reversed(rows)), fontsize=8)
    figure.supxlabel("points against continued, 95 % interval", fontsize=9, y=-0.04)
    return figure


FAITHFULNESS_PANELS = {
    "flip_rate": "share that flips",
    "regions_at_flip": "regions at the flip",
    "insertion_auc": "insertion AUC",
    "deletion_auc": "deletion AUC",
}


def faithfulness_figure(results: Faithfulness) -> Figure:
    """Selectors side by side for every model, a panel per measure."""
    figure, axes = plt.subplots(1, len(FAITHFULNESS_PANELS), figsize=(14, 3.2))
    selectors = list(dict.fromkeys(selector for measures in results.values() for selector in measures))
    width, places = 0.8 / len(selectors), np.arange(len(results))
    for axis, (name, title) in zip(axes, FAITHFULNESS_PANELS.items(), strict=True):
        for number, selector in enumerate(selectors):
            positions = places + (number - (len(selectors) - 1) / 2) * width
            values = [measures.get(selector, {}).get(name, np.nan) for measures in results.values()]
            axis.bar(positions, values, width, color=SELECTOR_COLORS.get(selector, OTHER), label=selector)
        axis.set_xticks(places, list(results), rotation=30, ha="right", fontsize=8)
        axis.set_title(title, fontsize=9)
    _legend(axes[-1])
    return figure


def rounds_figure(rounds: list[Measures], parts: list[str], code_distance: int | None) -> Figure:
    """Reliance, completeness and the size of a flip, round by round; without known parts the size alone."""
    figure, axes = plt.subplots(1, 3 if parts else 1, figsize=(13 if parts else 5, 3.4), squeeze=False)
    figure.subplots_adjust(wspace=0.25)
    axis, searched = axes[0, -1], [one for one in rounds if "round/regions_at_flip" in one]
    numbers = [one["round/round"] for one in searched]
    sizes = [one["round/regions_at_flip"] for one in searched]
    axis.plot(numbers, sizes, marker="o", color="#222222", label="regions")
    if parts:
        destroyed = [one.get("round/flip_distance", np.nan) for one in searched]
        axis.plot(numbers, destroyed, marker="o", color=color("masks_rounds"), label="parts destroyed")
        axis.axhline(code_distance, color=OPTIMUM, linestyle="--", linewidth=1, label="parts that must go: complete")
        _causes_by_round(axes[0], rounds, parts)
    axis.set(title="Size of a flip, before each round", xlabel="round", xticks=numbers, ylim=(0, None))
    axis.legend(frameon=False, fontsize=8)
    return figure


def _causes_by_round(axes: np.ndarray, rounds: list[Measures], parts: list[str]) -> None:
    """The panels of reliance and completeness."""
    steps = [one["round/round"] for one in rounds]
    after = "after round (0: base)"
    for part, name in enumerate(parts):
        axes[0].plot(steps, [one[f"round/reliance/{part}"] for one in rounds], marker="o", label=name)
    axes[0].axhline(1 / len(parts), color=OPTIMUM, linestyle="--", linewidth=1)
    axes[0].set(title="Reliance per part (dashed: even)", xlabel=after, xticks=steps)
    axes[0].set_ylim(0, 1.5 * axes[0].get_ylim()[1])  # room for the legend
    axes[0].legend(frameon=False, fontsize=8, ncol=2, loc="upper center")
    axes[1].plot(steps, [one["round/completeness"] for one in rounds], marker="o", color=color("masks_rounds"))
    axes[1].set(title="Completeness (validation)", xlabel=after, xticks=steps, ylim=(0, 1))


def detection_figure(report: DetectionReport) -> Figure | None:
    """Areas under the curves, detector by detector, on every split with both errors and correct predictions."""
    measured = {split: content["detectors"] for split, content in report.items()}
    splits = [split for split, detectors in measured.items() if any("auroc" in one for one in detectors.values())]
    if not splits:
        return None
    figure, axes = plt.subplots(2, 1, figsize=(max(6, 1.5 * len(splits)), 5.6), sharex=True)
    places = np.arange(len(splits))
    titles = {"auroc": "AUROC (dashed: chance)", "aupr": "AUPR (dashed: share of errors)"}
    for axis, (key, title) in zip(axes, titles.items(), strict=True):
        for number, (name, shade) in enumerate(DETECTOR_COLORS.items()):
            values = [measured[split][name].get(key, np.nan) for split in splits]
            axis.bar(places + (number - 3) * 0.115, values, 0.115, color=shade, label=name)
        for place, split in enumerate(splits):
            chance = 0.5 if key == "auroc" else report[split]["errors"] / report[split]["images"]
            axis.plot([place - 0.42, place + 0.42], [chance, chance], color="#222222", linewidth=1, linestyle="--")
        axis.set(ylabel=title, ylim=(0, 1))
    axes[1].set_xticks(places, [split_name(split) for split in splits], rotation=20, ha="right", fontsize=8)
    _legend(axes[0])
    return figure


TERM_PANELS = {
    "train/mc": "activity on the class's filters",
    "train/nonmc": "activity beside them",
    "train/active": "active filters per image",
}


def terms_figure(histories: dict[str, list[Measures]]) -> Figure | None:
    """The filter terms and the number of active filters, epoch by epoch, of every row that computes them."""
    computed = {row: epochs for row, epochs in histories.items() if epochs and set(TERM_PANELS) <= set(epochs[0])}
    if not computed:
        return None
    figure, axes = plt.subplots(1, 3, figsize=(14, 3.4))
    for axis, (name, title) in zip(axes, TERM_PANELS.items(), strict=True):
        for row, epochs in computed.items():
            points = [(one["step"], one[name]) for one in epochs if name in one]
            axis.plot(*zip(*points, strict=True), marker="o", markersize=3, color=color(row), label=row)
        axis.set(title=title, xlabel="epoch")
    _legend(axes[-1])
    return figure


def _grouped_bars(axis: Axes, results: Results, metrics: list[str], labels: list[str]) -> None:
    """Bars of every row for every metric; whiskers are the standard deviation over seeds."""
    width, places = 0.8 / len(results.rows), np.arange(len(metrics))
    for number, row in enumerate(results.rows):
        values = np.stack([results.values(row, metric) for metric in metrics])
        whiskers = values.std(axis=1, ddof=1) if values.shape[1] > 1 else None
        positions = places + (number - (len(results.rows) - 1) / 2) * width
        style = {"color": color(row), "label": row, "error_kw": {"linewidth": 0.8}}
        axis.bar(positions, values.mean(axis=1), width, yerr=whiskers, **style)
    slanted = {"rotation": 30, "ha": "right"} if len(labels) > 6 else {}
    axis.set_xticks(places, labels, fontsize=8, **slanted)
    _legend(axis)


def _legend(axis: Axes) -> None:
    """The legend beside the axes, where nothing can hide behind it."""
    axis.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1.0))
