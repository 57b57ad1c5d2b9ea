"""The report on misclassification detection: every detector beside the scores that cost nothing and beside its controls."""

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from everycause.evaluation.detection import Report
from everycause.reporting.figures import color
from everycause.reporting.tables import markdown

# MERGED DOC: """The report on explanations: selectors compared, and what the rounds did."""


Faithfulness = dict[str, dict[str, dict[str, float]]]
"""Row → selector → measure."""
COLUMNS = {
    "flip_rate": "flips", "regions_at_flip": "regions at the flip", "area_at_flip": "area at the flip", "insertion_auc": "insertion AUC",
    "deletion_auc": "deletion AUC", "optimality_ratio": "size / true minimum (N = 16)", "share_on_parts": "share on parts", "part_iou": "IoU with the parts",
    "flip_distance": "parts destroyed", "forwards_per_image": "forward passes",
}  # fmt: skip
PANELS = {
    "flip_rate": "share that flips",
    "regions_at_flip": "regions at the flip",
    "insertion_auc": "insertion AUC",
    "deletion_auc": "deletion AUC",
}
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
    present = [
        name
        for name in COLUMNS
        if any(name in measures for selectors in results.values() for measures in selectors.values())
    ]
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
        axis.plot(
            numbers,
            [one["round/flip_distance"] for one in searched],
            marker="o",
            color=color("masks_rounds"),
            label="parts destroyed",
        )
        axis.axhline(code_distance, color="#3a9d23", linestyle="--", linewidth=1, label="parts that must go: complete")
    axis.set(title="What a flip takes, before a round", xlabel="round", xticks=numbers, ylim=(0, None))
    axis.legend(frameon=False, fontsize=8)
    if parts:
        steps = [one["round/round"] for one in rounds]
        for part, name in enumerate(parts):
            axes[0, 0].plot(steps, [one[f"round/reliance/{part}"] for one in rounds], marker="o", label=name)
        axes[0, 0].axhline(1 / len(parts), color="#3a9d23", linestyle="--", linewidth=1)
        axes[0, 0].set(
            title="Reliance per part (dashed: even)",
            xlabel="after round (0: base)",
            xticks=steps,
            ylim=(0, 1.5 * axes[0, 0].get_ylim()[1]),
        )
        axes[0, 0].legend(frameon=False, fontsize=8, ncol=2, loc="upper center")
        axes[0, 1].plot(steps, [one["round/completeness"] for one in rounds], marker="o", color=color("masks_rounds"))
        axes[0, 1].set(title="Completeness (validation)", xlabel="after round (0: base)", xticks=steps, ylim=(0, 1))
    return figure


DETECTION_COLUMNS = {
    "flagged": "flagged",
    "recall": "recall",
    "precision": "precision",
    "f1": "F1",
    "auroc": "AUROC",
    "aupr": "AUPR",
    "fpr_at_95": "FPR@95",
}
COLORS = {
    "filters": "#d98c00", "filters_random": "#e8cf9f", "filters_permuted": "#b9a57f", "filters_ungated": "#7a6a53", "gate": "#b3005e", "max_softmax": "#0072b2", "entropy": "#56b4e9",
}  # fmt: skip


def in_order(report: Report) -> Report:
    """The test split first: a stored report is in the order of the alphabet."""
    return {
        split: report[split] for split in sorted(report, key=lambda split: (split != "test", split.count("/"), split))
    }


def detection_table(report: Report) -> str:
    """One line per split and detector; a cell is empty where there are only errors or none."""
    lines = [
        [
            split,
            f"{content['errors']} / {content['images']}",
            f"`{name}`",
            *(_cell(content["detectors"][name], column) for column in DETECTION_COLUMNS),
        ]
        for split, content in in_order(report).items()
        for name in COLORS
    ]
    return markdown(["split", "errors", "detector", *DETECTION_COLUMNS.values()], lines)


def relabelling_table(report: Report) -> str:
    """What new labels do to the flagged predictions, in percent and in images."""
    judges = ("filters", "filters_random", "runner_up")
    lines = []
    for split, content in in_order(report).items():
        new = content["relabelling"]
        cells = [
            f"{100 * new[f'{judge}/accuracy']:.1f} (+{new[f'{judge}/corrected']:.0f} −{new[f'{judge}/broken']:.0f})"
            for judge in judges
        ]
        lines.append([split, f"{new['flagged']:.0f}", f"{100 * new['accuracy']:.1f}", *cells])
    return markdown(["split", "flagged", "accuracy before", *(f"by `{judge}`" for judge in judges)], lines)


def classes_table(report: Report) -> str:
    """The predicted classes of the test split with errors or flags."""
    rows = [row for row in report["test"]["by_class"] if row["errors"] or row["flagged"]]
    columns = {
        "class": "predicted class",
        "predicted": "predictions",
        "errors": "wrong",
        "flagged": "flagged",
        "found": "flagged and wrong",
    }
    return markdown(list(columns.values()), [[str(row[key]) for key in columns] for row in rows])


def detection_figure(report: Report) -> Figure:
    """Areas under the curves, detector by detector, on every split with both errors and correct predictions."""
    splits = [
        split
        for split, content in in_order(report).items()
        if any("auroc" in measured for measured in content["detectors"].values())
    ]
    figure, axes = plt.subplots(2, 1, figsize=(12, 5.6), sharex=True)
    for axis, (key, title) in zip(
        axes, (("auroc", "AUROC (0.5: chance)"), ("aupr", "AUPR (line: share of errors)")), strict=True
    ):
        for number, (name, shade) in enumerate(COLORS.items()):
            values = [report[split]["detectors"][name].get(key, np.nan) for split in splits]
            axis.bar(np.arange(len(splits)) + (number - 3) * 0.115, values, 0.115, color=shade, label=name)
        for place, split in enumerate(splits):
            chance = 0.5 if key == "auroc" else report[split]["errors"] / report[split]["images"]
            axis.plot([place - 0.42, place + 0.42], [chance, chance], color="#222222", linewidth=1, linestyle="--")
        axis.set(ylabel=title, ylim=(0, 1))
    axes[1].set_xticks(
        np.arange(len(splits)),
        [split.replace("scene_shift/", "scene: ").replace("_", " ") for split in splits],
        rotation=20,
        ha="right",
        fontsize=8,
    )
    axes[0].legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1.0))
    return figure


def _cell(measured: dict[str, float], column: str) -> str:
    value = measured.get(column)
    return "" if value is None else f"{value:.0f}" if column == "flagged" else f"{100 * value:.1f}"
