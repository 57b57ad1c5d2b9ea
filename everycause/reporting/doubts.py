"""The report on misclassification detection: every detector beside the scores that cost nothing and beside its controls."""

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from everycause.evaluation.detection import Report
from everycause.reporting.tables import markdown

COLUMNS = {"flagged": "flagged", "recall": "recall", "precision": "precision", "f1": "F1", "auroc": "AUROC", "aupr": "AUPR", "fpr_at_95": "FPR@95"}
COLORS = {
    "filters": "#d98c00", "filters_random": "#e8cf9f", "filters_permuted": "#b9a57f", "filters_ungated": "#7a6a53", "gate": "#b3005e", "max_softmax": "#0072b2", "entropy": "#56b4e9",
}  # fmt: skip


def in_order(report: Report) -> Report:
    """The test split first: a stored report is in the order of the alphabet."""
    return {split: report[split] for split in sorted(report, key=lambda split: (split != "test", split.count("/"), split))}


def detection_table(report: Report) -> str:
    """One line per split and detector; a cell is empty where there are only errors or none."""
    lines = [
        [split, f"{content['errors']} / {content['images']}", f"`{name}`", *(_cell(content["detectors"][name], column) for column in COLUMNS)]
        for split, content in in_order(report).items()
        for name in COLORS
    ]
    return markdown(["split", "errors", "detector", *COLUMNS.values()], lines)


def relabelling_table(report: Report) -> str:
    """What new labels do to the flagged predictions, in percent and in images."""
    judges = ("filters", "filters_random", "runner_up")
    lines = []
    for split, content in in_order(report).items():
        new = content["relabelling"]
        cells = [f"{100 * new[f'{judge}/accuracy']:.1f} (+{new[f'{judge}/corrected']:.0f} −{new[f'{judge}/broken']:.0f})" for judge in judges]
        lines.append([split, f"{new['flagged']:.0f}", f"{100 * new['accuracy']:.1f}", *cells])
    return markdown(["split", "flagged", "accuracy before", *(f"by `{judge}`" for judge in judges)], lines)


def classes_table(report: Report) -> str:
    """The predicted classes of the test split with errors or flags."""
    rows = [row for row in report["test"]["by_class"] if row["errors"] or row["flagged"]]
    columns = {"class": "predicted class", "predicted": "predictions", "errors": "wrong", "flagged": "flagged", "found": "flagged and wrong"}
    return markdown(list(columns.values()), [[str(row[key]) for key in columns] for row in rows])


def detection_figure(report: Report) -> Figure:
    """Areas under the curves, detector by detector, on every split with both errors and correct predictions."""
    splits = [split for split, content in in_order(report).items() if any("auroc" in measured for measured in content["detectors"].values())]
    figure, axes = plt.subplots(2, 1, figsize=(12, 5.6), sharex=True)
    for axis, (key, title) in zip(axes, (("auroc", "AUROC (0.5: chance)"), ("aupr", "AUPR (line: share of errors)")), strict=True):
        for number, (name, shade) in enumerate(COLORS.items()):
            values = [report[split]["detectors"][name].get(key, np.nan) for split in splits]
            axis.bar(np.arange(len(splits)) + (number - 3) * 0.115, values, 0.115, color=shade, label=name)
        for place, split in enumerate(splits):
            chance = 0.5 if key == "auroc" else report[split]["errors"] / report[split]["images"]
            axis.plot([place - 0.42, place + 0.42], [chance, chance], color="#222222", linewidth=1, linestyle="--")
        axis.set(ylabel=title, ylim=(0, 1))
    axes[1].set_xticks(
        np.arange(len(splits)), [split.replace("scene_shift/", "scene: ").replace("_", " ") for split in splits], rotation=20, ha="right", fontsize=8
    )
    axes[0].legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1.0))
    return figure


def _cell(measured: dict[str, float], column: str) -> str:
    value = measured.get(column)
    return "" if value is None else f"{value:.0f}" if column == "flagged" else f"{100 * value:.1f}"
