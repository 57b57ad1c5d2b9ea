"""What the report draws of results: every chart is panels of rows (everycause/reporting/panels.py) or a grid."""

from typing import Any

import numpy as np
from matplotlib.figure import Figure

from everycause.reporting.colors import OTHER, SELECTOR_COLORS
from everycause.reporting.figures import DETECTOR_COLORS, color, split_name
from everycause.reporting.panels import Mark, Panel, number_grid, row_panels
from everycause.reporting.results import REFERENCE, DetectionReport, Faithfulness, Measures, Results

LEAST_SPREAD = 0.01
"""Accuracies on test that differ by less say nothing about accuracies under shift."""
FAITHFULNESS_PANELS = {
    "flip_rate": ("percent that flip", 100, 0),
    "regions_at_flip": ("regions at the flip", 1, 1),
    "insertion_auc": ("insertion AUC", 1, 2),
    "deletion_auc": ("deletion AUC", 1, 2),
}
"""Measure → title, factor, decimal places."""
TERM_PANELS = {
    "train/mc": "activity on the class's filters",
    "train/nonmc": "activity beside them",
    "train/active": "active filters per image",
}


def accuracies(results: Results) -> Figure:
    """Accuracy of each row on each split, with 95 % intervals over seeds and images."""
    metrics = [name for name in results.accuracy_metrics() if not name.startswith("accuracy/corruptions/")]
    panels = []
    for name in (metric.removeprefix("accuracy/") for metric in metrics):
        found = {row: results.interval(row, name) for row in results.rows}
        panels.append(Panel(split_name(name), {row: Mark(*one) for row, one in found.items()}))
    return row_panels(panels, color, "accuracy in percent, 95 % interval over seeds and images")


def completeness_profiles(results: Results, code: dict[str, Any]) -> Figure:
    """Accuracy with some parts erased: mean over the choices of parts, the worst choice (hollow), and the optimum."""
    panels = []
    for erased in range(1, code["length"]):
        marks = {"optimum": Mark(_mean(results, results.rows[0], f"erasures/{erased}/optimum"))}
        for row in results.rows:
            mean, worst = (_mean(results, row, f"erasures/{erased}/{kind}") for kind in ("mean", "worst"))
            marks[row] = Mark(mean, other=worst)
        title = f"{erased} part{'s' if erased > 1 else ''} erased"
        panels.append(Panel(title, marks, 1 / code["num_classes"]))
    return row_panels(panels, color, "accuracy in percent: mean over the choices, hollow: worst choice, dashed: chance")


def reliance(results: Results, cues: list[str]) -> Figure:
    """The share of each part in the Shapley values, per row."""
    shares = np.array([[_mean(results, row, f"reliance/{part}") for part in range(len(cues))] for row in results.rows])
    title = f"Share of each part in the Shapley values, percent (even: {100 / len(cues):.0f})"
    return number_grid(100 * shares, results.rows, cues, title, "cividis", (0.0, 100 * max(0.5, float(shares.max()))))


def scene_gap(results: Results, classes: int) -> Figure:
    """The accuracy that a row loses when the scene says nothing, and that on scenes alone, beside chance."""
    measures = {
        "scene_gap": ("test − free scene", 0.0),
        "accuracy/scene_shift/scene_only": ("scene without a bird", 1 / classes),
    }
    panels = [
        Panel(title, {row: Mark(_mean(results, row, name)) for row in results.rows}, line, digits=1)
        for name, (title, line) in measures.items()
    ]
    return row_panels(panels, color, "accuracy in points and percent (dashed: none, and chance)")


def corruption_figure(results: Results) -> Figure:
    """Accuracy under every corruption, averaged over its severities."""
    names = list(dict.fromkeys(view.split("/")[1] for view in results.views if view.startswith("corruptions/")))
    values = np.array([[results.accuracy(row, f"corruptions/{name}") for name in names] for row in results.rows])
    columns = [name.replace("_", " ") for name in names]
    title = "Accuracy under each corruption, percent, mean over severities"
    return number_grid(100 * values, results.rows, columns, title, "cividis", (0.0, 100.0))


def scatter_figure(results: Results) -> Figure | None:
    """Each row's accuracy under shift beside its accuracy on test (hollow); None where all rows are alike on test."""
    families = [name for name in results.families() if name not in ("test", "erasures", "swaps")]
    on_test = {row: results.accuracy(row, "test") for row in results.rows}
    if not families or max(on_test.values()) - min(on_test.values()) < LEAST_SPREAD:
        return None
    panels = [
        Panel(
            split_name(family),
            {row: Mark(results.accuracy(row, family), other=on_test[row]) for row in results.rows},
        )
        for family in families
    ]
    return row_panels(panels, color, "accuracy in percent under shift; hollow: on test")


def difference_figure(results: Results) -> Figure | None:
    """Each row's difference from the reference with its interval, in points, a panel for each family of splits."""
    panels = []
    for family in results.families():
        found = {row: results.difference(row, family) for row in results.rows}
        marks = {row: Mark(*one) for row, one in found.items() if one is not None}
        if marks:
            panels.append(Panel(split_name(family), marks, 0.0, digits=1, signed=True))
    return row_panels(panels, color, f"points against {REFERENCE}, 95 % interval") if panels else None


def faithfulness_figure(results: Faithfulness) -> Figure:
    """Selectors side by side, the filled dot for the first model and the hollow one for the second."""
    first, *others = results
    panels = []
    for name, (title, scale, digits) in FAITHFULNESS_PANELS.items():
        marks = {}
        for selector in dict.fromkeys(selector for measures in results.values() for selector in measures):
            values = [results[model].get(selector, {}).get(name) for model in (first, *others[:1])]
            value, other = values[0], values[1] if len(values) > 1 else None
            marks[selector] = Mark(np.nan if value is None else value, other=other)
        panels.append(Panel(title, marks, scale=scale, digits=digits))
    hollow = f"; hollow: {others[0]}" if others else ""
    return row_panels(panels, lambda name: SELECTOR_COLORS.get(name, OTHER), f"explanations of {first}{hollow}")


def detection_figure(report: DetectionReport) -> Figure | None:
    """Areas under the ROC curve, detector by detector, on every split with both errors and correct predictions."""
    panels = []
    for split, content in report.items():
        found = content["detectors"]
        values = {name: found[name]["auroc"] for name in DETECTOR_COLORS if "auroc" in found.get(name, {})}
        if values:
            marks = {name: Mark(value) for name, value in values.items()}
            panels.append(Panel(split_name(split), marks, 0.5, 1, 2))
    shades = DETECTOR_COLORS
    return row_panels(panels, lambda name: shades.get(name, OTHER), "AUROC (dashed: chance)") if panels else None


def terms_figure(histories: dict[str, list[Measures]]) -> Figure | None:
    """The filter terms and the number of active filters, in the first epoch (hollow) and the last, where computed."""
    computed = {row: epochs for row, epochs in histories.items() if epochs and set(TERM_PANELS) <= set(epochs[0])}
    if not computed:
        return None
    panels = []
    for name, title in TERM_PANELS.items():
        steps = {row: [one[name] for one in epochs if name in one] for row, epochs in computed.items()}
        marks = {row: Mark(values[-1], other=values[0]) for row, values in steps.items()}
        panels.append(Panel(title, marks, scale=1, digits=1))
    return row_panels(panels, color, "hollow: first epoch, filled: last epoch")


def _mean(results: Results, row: str, metric: str) -> float:
    return float(results.values(row, metric).mean())
