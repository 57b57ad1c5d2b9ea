"""The report on explanations: selectors compared, and what the rounds did."""

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from everycause.reporting.figures import color
from everycause.reporting.tables import markdown

Faithfulness = dict[str, dict[str, dict[str, float]]]
"""Row → selector → measure."""
COLUMNS = {
    "flip_rate": "flips", "regions_at_flip": "regions at the flip", "area_at_flip": "area at the flip", "insertion_auc": "insertion AUC",
    "deletion_auc": "deletion AUC", "optimality_ratio": "size / true minimum (N = 16)", "share_on_parts": "share on parts", "part_iou": "IoU with the parts",
    "flip_distance": "parts destroyed", "forwards_per_image": "forward passes",
}  # fmt: skip
PANELS = {"flip_rate": "share that flips", "regions_at_flip": "regions at the flip", "insertion_auc": "insertion AUC", "deletion_auc": "deletion AUC"}
SELECTOR_COLORS = {
    "counterfactual": "#0072b2",
    "factual": "#d98c00",
    "bidirectional": "#b3005e",
    "grad_cam": "#009e73",
    "filter_cam": "#56b4e9",
    "random": "#999999",
}


def faithfulness_table(results: Faithfulness) -> str:
    """One line per model and selector; a cell is empty where a measure does not exist."""
    present = [name for name in COLUMNS if any(name in measures for selectors in results.values() for measures in selectors.values())]
    lines = [
        [f"`{row}`", selector, *(f"{measures[name]:.3g}" if name in measures else "" for name in present)]
        for row, selectors in results.items()
        for selector, measures in selectors.items()
    ]
    return markdown(["model", "selector", *(COLUMNS[name] for name in present)], lines)


def faithfulness_figure(results: Faithfulness) -> Figure:
    """Selectors side by side for every model, a panel per measure."""
    figure, axes = plt.subplots(1, len(PANELS), figsize=(14, 3.2))
    selectors = list(dict.fromkeys(selector for measures in results.values() for selector in measures))
    width = 0.8 / len(selectors)
    for axis, (name, title) in zip(axes, PANELS.items(), strict=True):
        for number, selector in enumerate(selectors):
            positions = np.arange(len(results)) + (number - (len(selectors) - 1) / 2) * width
            values = [measures.get(selector, {}).get(name, 0.0) for measures in results.values()]
            axis.bar(positions, values, width, color=SELECTOR_COLORS[selector], label=selector)
        axis.set_xticks(np.arange(len(results)), list(results), rotation=30, ha="right", fontsize=8)
        axis.set_title(title, fontsize=9)
    axes[-1].legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1.0))
    return figure


def rounds_figure(rounds: list[dict[str, float]], parts: list[str], code_distance: int | None) -> Figure:
    """Reliance, completeness and the size of a flip, round by round; without known parts the size alone."""
    figure, axes = plt.subplots(1, 3 if parts else 1, figsize=(13 if parts else 5, 3.4), squeeze=False)
    figure.subplots_adjust(wspace=0.25)
    axis = axes[0, -1]
    searched = [one for one in rounds if "round/regions_at_flip" in one]
    numbers = [one["round/round"] for one in searched]
    axis.plot(numbers, [one["round/regions_at_flip"] for one in searched], marker="o", color="#222222", label="regions")
    if parts:
        axis.plot(numbers, [one["round/flip_distance"] for one in searched], marker="o", color=color("masks_rounds"), label="parts destroyed")
        axis.axhline(code_distance, color="#3a9d23", linestyle="--", linewidth=1, label="parts that must go: complete")
    axis.set(title="What a flip takes, before a round", xlabel="round", xticks=numbers, ylim=(0, None))
    axis.legend(frameon=False, fontsize=8)
    if parts:
        steps = [one["round/round"] for one in rounds]
        for part, name in enumerate(parts):
            axes[0, 0].plot(steps, [one[f"round/reliance/{part}"] for one in rounds], marker="o", label=name)
        axes[0, 0].axhline(1 / len(parts), color="#3a9d23", linestyle="--", linewidth=1)
        axes[0, 0].set(title="Reliance per part (dashed: even)", xlabel="after round (0: base)", xticks=steps, ylim=(0, 1.5 * axes[0, 0].get_ylim()[1]))
        axes[0, 0].legend(frameon=False, fontsize=8, ncol=2, loc="upper center")
        axes[0, 1].plot(steps, [one["round/completeness"] for one in rounds], marker="o", color=color("masks_rounds"))
        axes[0, 1].set(title="Completeness (validation)", xlabel="after round (0: base)", xticks=steps, ylim=(0, 1))
    return figure
