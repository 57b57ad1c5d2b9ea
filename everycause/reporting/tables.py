"""Tables in Markdown: every number is computed from what the stages stored, none is typed."""

import re
from collections.abc import Iterator

import numpy as np
import pandas as pd

from everycause.evaluation.statistics import Interval, holm, sign_flip_p
from everycause.reporting.results import REFERENCE, DetectionReport, Faithfulness, Measures, Results

COLUMNS = {
    "accuracy/test": "test",
    "accuracy/test_200": "test (200)",
    "mce": "mCE",
    "accuracy/scene_shift/independent": "free scene",
    "scene_gap": "scene gap",
    "worst_group": "worst group",
    "accuracy/swaps/1": "1 swap",
    "erasures/3/mean": "3 erased",
    "erasures/3/worst": "3 erased, worst",
    "completeness": "completeness",
    "effective_causes": "causes used",
}
"""Metric → column of the main table. Accuracies of other views stand under the name of the view."""
MEANINGS = {
    "test": "accuracy on the test split, whose images are drawn like those of training",
    "test (200)": "the same on the classes of ImageNet-R, with answers among these alone",
    "mCE": "mean corruption error, relative to AlexNet: smaller is better",
    "renditions": "the test images drawn in other styles",
    "sketch": "the test images as sketches",
    "corruptions": "the test images under noise, blur, weather and digital corruptions, over all severities",
    "free scene": "accuracy where the scene says nothing about the class",
    "scene gap": "test minus free scene: what is lost with the scene's help",
    "worst group": "lowest accuracy of a group of test images, such as one class in opposed scenes",
    "1 swap": "accuracy with one part taken from another class",
    "3 erased": "accuracy with three of the parts erased, mean over the choices of three",
    "3 erased, worst": "the same for the worst choice of three",
    "completeness": "0 at chance, 100 for a classifier that has learned every sufficient cause",
    "causes used": "number of parts that the classifier relies on, were it even",
}
"""Column of the main table → explanation."""
PLAIN = {"effective_causes", "mce"}
"""Metrics that are no shares, hence not shown in percent."""
LEAST_SEEDS = 6
"""With fewer seeds no sign-flip test can reach 0.05."""
NAMED, MOST_CLASSES = 3, 40
"""Classes that are named as gaining or losing most; classes of a table that shows them all."""
GENERATORS = ("all_classes", "only_class", "singular", "straight_through", "exact_sufficient", "exact_necessary")
DETECTORS = (
    "filters",
    "filters_random",
    "filters_permuted",
    "filters_ungated",
    "gate",
    "max_softmax",
    "entropy",
)


def markdown(header: list[str], lines: list[list[str]]) -> str:
    """A table in Markdown, its cells as they are."""
    frame = pd.DataFrame(lines, columns=pd.Index(header), dtype=object)
    return frame.to_markdown(index=False, disable_numparse=True, stralign=None, numalign=None)


def plain(text: str) -> str:
    """A name from the user's data, with the characters escaped that mean something in Markdown."""
    return re.sub(r"([\\|*$<`\[])|((?<![^\W_])_|_(?![^\W_]))", lambda match: "\\" + match.group(), text)


def class_name(name: str) -> str:
    """A class as people call it: codewords of Codebirds without their prefix."""
    return name.removeprefix("word-")


def header(results: Results) -> Iterator[str]:
    """What a reader must know before the numbers."""
    if len(results.seeds) > 1:
        yield f"{len(results.seeds)} seeds; mean ± standard deviation; shares in percent."
    else:
        yield "1 seed; one run per row, so training noise is not measured; shares in percent."
    yield (
        f"Nothing was selected on test images. Differences from `{REFERENCE}` are paired by seed and test image; "
        "their 95 % intervals are bootstrapped over both."
    )


def main_metrics(results: Results) -> dict[str, str]:
    """Metric → column of the main table: first the splits in the order of the data, then what is known of causes."""
    splits = [name for name in results.accuracy_metrics() if name.count("/") == 1]
    first = ["accuracy/test", "accuracy/test_200", "mce"]
    metrics = [*first, *splits, *COLUMNS]
    return {
        name: COLUMNS.get(name, name.removeprefix("accuracy/")) for name in dict.fromkeys(metrics) if results.has(name)
    }


def main_table(results: Results) -> str:
    """One line per row, mean ± standard deviation over seeds; shares in percent."""
    shown = main_metrics(results)
    lines = [[f"`{row}`", *(_cell(results, row, metric) for metric in shown)] for row in results.rows]
    return markdown(["row", *(plain(column) for column in shown.values())], lines)


def column_meanings(results: Results) -> str:
    """A sentence that explains the columns of the main table."""
    columns = list(main_metrics(results).values())
    told = [f"*{column}*: {MEANINGS[column]}" for column in columns if column in MEANINGS]
    others = ["every other column: accuracy on the test split of that name"] if set(columns) - set(MEANINGS) else []
    return "; ".join([*told, *others]) + "."


def difference_table(results: Results) -> str:
    """Each row's paired difference in accuracy from the reference with its interval, in points."""
    families = list(results.families())
    lines = []
    for row in results.rows:
        intervals = [results.difference(row, family) for family in families]
        if any(interval is not None for interval in intervals):
            lines.append([f"`{row}`", *map(_interval, intervals)])
    return markdown(["row", *(plain(family.replace("_", " ")) for family in families)], lines) if lines else ""


def significance_table(results: Results) -> str:
    """Exact sign-flip tests of each row's differences from the reference; nothing with fewer than six seeds.

    p-values are adjusted over the families of splits by Holm's method.
    """
    if len(results.seeds) < LEAST_SEEDS or REFERENCE not in results.rows:
        return ""
    families, lines = list(results.families()), []
    for row in (row for row in results.rows if row not in ("base", REFERENCE)):
        adjusted = holm({family: sign_flip_p(results.differences(row, family).mean(axis=1)) for family in families})
        lines.append([f"`{row}`", *(f"{adjusted[family]:.3f}" for family in families)])
    return markdown(["row", *(plain(family.replace("_", " ")) for family in families)], lines)


def calibration_table(results: Results) -> str:
    """Top-5 accuracy, mean recall of the classes and expected calibration error, on the splits of the main table."""
    kinds = {"top5": "top 5", "macro": "class mean", "calibration_error": "calibration error"}
    views = [view for view in results.views if "/" not in view or f"accuracy/{view}" in COLUMNS]
    shown = [(view, kind) for view in views for kind in kinds if results.has(f"{kind}/{view}")]
    if not shown:
        return ""
    columns = [f"{plain(COLUMNS.get(f'accuracy/{view}', view))}: {kinds[kind]}" for view, kind in shown]
    lines = [[f"`{row}`", *(_cell(results, row, f"{kind}/{view}") for view, kind in shown)] for row in results.rows]
    return markdown(["row", *columns], lines)


def meaning_table(results: Results, meanings: dict[str, str]) -> str:
    """What each row adds to the continued base."""
    lines = [[f"`{row}`", meanings.get(row, row)] for row in results.rows]
    return markdown(["row", "what it adds to the continued base"], lines)


FAITHFULNESS = {
    "flip_rate": "share that flips",
    "regions_at_flip": "regions at the flip",
    "area_at_flip": "area at the flip",
    "insertion_auc": "insertion AUC",
    "deletion_auc": "deletion AUC",
    "optimality_ratio": "size / true minimum (N = 16)",
    "share_on_parts": "share on parts",
    "part_iou": "IoU with the parts",
    "flip_distance": "parts destroyed",
    "forwards_per_image": "forward passes",
}


def faithfulness_table(faithfulness: Faithfulness) -> str:
    """One line per model and selector; a cell is empty where a measure does not exist."""
    every = [measures for selectors in faithfulness.values() for measures in selectors.values()]
    present = [name for name in FAITHFULNESS if any(name in measures for measures in every)]
    lines = [
        [f"`{row}`", selector, *(_short(measures.get(name)) for name in present)]
        for row, selectors in faithfulness.items()
        for selector, measures in selectors.items()
    ]
    return markdown(["model", "selector", *(FAITHFULNESS[name] for name in present)], lines)


def summary_table(summary: Measures, names: dict[str, str]) -> str:
    """A two-column table of the measures that exist."""
    lines = [[told, _short(summary[key])] for key, told in names.items() if key in summary]
    return markdown(["measure", "value"], lines)


QUALITY = {
    "filters_per_image": "filters",
    "keep_rate": "prediction kept",
    "random/keep_rate": "… on random ones",
    "disable_flip_rate": "prediction lost without",
    "random/disable_flip_rate": "… without random ones",
}


def generators_table(summary: Measures) -> str:
    """One line per generator of local filters, each beside random sets of equal size."""
    names = [name for name in GENERATORS if f"{name}/filters_per_image" in summary]
    lines = [[f"`{name}`", *(_short(summary.get(f"{name}/{measure}")) for measure in QUALITY)] for name in names]
    return markdown(["generator", *QUALITY.values()], lines)


TERMS = {"train/mc": "on the filters", "train/nonmc": "beside them", "train/active": "active filters"}


def terms_table(histories: dict[str, list[Measures]]) -> str:
    """The filter terms in the first and in the last epoch, for every row that computes them."""
    lines = [
        [f"`{row}`", *(f"{epochs[0][name]:.4g} → {epochs[-1][name]:.4g}" for name in TERMS)]
        for row, epochs in histories.items()
        if epochs and set(TERMS) <= set(epochs[0]) & set(epochs[-1])
    ]
    return markdown(["row", *TERMS.values()], lines) if lines else ""


def winners_table(results: Results, class_names: list[str]) -> str:
    """How many classes are recognized more and less often than by the reference, and which most, in points."""
    if REFERENCE not in results.rows:
        return ""
    lines = []
    for row in (row for row in results.rows if row not in ("base", REFERENCE)):
        for family in (family for family in ("test", "corruptions") if family in results.families()):
            change = 100 * np.nan_to_num(results.recalls(row, family) - results.recalls(REFERENCE, family))
            order = np.argsort(-change, kind="stable")
            named = {c: f"{plain(class_name(class_names[c]))} {change[c]:+.1f}" for c in order}
            won = [named[c] for c in order[:NAMED] if change[c] > 0]
            lost = [named[c] for c in order[::-1][:NAMED] if change[c] < 0]
            counts = str(int((change > 0).sum())), str(int((change < 0).sum()))
            lines.append([f"`{row}`", family, counts[0], ", ".join(won), counts[1], ", ".join(lost)])
    return markdown(["row", "split", "classes won", "most", "classes lost", "most"], lines) if lines else ""


DETECTION = {
    "flagged": "flagged",
    "recall": "recall",
    "precision": "precision",
    "f1": "F1",
    "auroc": "AUROC",
    "aupr": "AUPR",
    "fpr_at_95": "FPR@95",
}


def in_order(report: DetectionReport, views: list[str]) -> DetectionReport:
    """The splits in the order of the data; a stored report is in alphabetical order."""
    names = [*dict.fromkeys("corruptions" if view.startswith("corruptions/") else view for view in views)]
    return {split: report[split] for split in [*names, *sorted(set(report) - set(names))] if split in report}


def detection_table(report: DetectionReport) -> str:
    """One line per split and detector, in percent; a cell is empty where all or no predictions are wrong."""
    lines = []
    for split, content in report.items():
        errors = f"{content['errors']} / {content['images']}"
        for name in DETECTORS:
            measured = content["detectors"][name]
            lines.append([plain(split), errors, f"`{name}`", *(_detected(measured, column) for column in DETECTION)])
    return markdown(["split", "errors", "detector", *DETECTION.values()], lines)


def relabelling_table(report: DetectionReport) -> str:
    """Accuracy in percent before and after flagged predictions get new labels, with the images corrected and broken."""
    judges, lines = ("filters", "filters_random", "runner_up"), []
    for split, content in report.items():
        new = content["relabelling"]
        after = [
            f"{100 * new[f'{judge}/accuracy']:.1f} (+{new[f'{judge}/corrected']:.0f} −{new[f'{judge}/broken']:.0f})"
            for judge in judges
        ]
        lines.append([plain(split), f"{new['flagged']:.0f}", f"{100 * new['accuracy']:.1f}", *after])
    return markdown(["split", "flagged", "accuracy before", *(f"by `{judge}`" for judge in judges)], lines)


def classes_table(report: DetectionReport) -> str:
    """Predictions of each class on the test split: wrong ones, flagged ones, both.

    Classes without errors and flags are left out; of more than 40 only those with the most and the fewest errors stay.
    """
    columns = {
        "class": "predicted class",
        "predicted": "predictions",
        "errors": "wrong",
        "flagged": "flagged",
        "found": "flagged and wrong",
    }
    rows = [row for row in report["test"]["by_class"] if row["errors"] or row["flagged"]]
    lines = [[plain(str(row[key])) for key in columns] for row in rows]
    if len(rows) > MOST_CLASSES:
        order = sorted(range(len(rows)), key=lambda number: -rows[number]["errors"])
        half, gap = MOST_CLASSES // 2, ["…"] * len(columns)
        lines = [*(lines[number] for number in order[:half]), gap, *(lines[number] for number in order[-half:])]
    return markdown(list(columns.values()), lines)


def _cell(results: Results, row: str, metric: str) -> str:
    values = results.values(row, metric)
    scale, digits = (1, 2) if metric in PLAIN else (100, 1)
    mean = f"{scale * values.mean():.{digits}f}"
    return f"{mean} ± {scale * values.std(ddof=1):.{digits}f}" if len(values) > 1 else mean


def _interval(found: Interval | None) -> str:
    """A difference with its interval, in points."""
    return "" if found is None else f"{100 * found.mean:+.1f} [{100 * found.low:+.1f}, {100 * found.high:+.1f}]"


def _short(value: float | None) -> str:
    """Three significant digits; whole numbers from 100 on; nothing for a measure that does not exist."""
    return "" if value is None else f"{value:.3g}" if value < 100 else f"{value:.0f}"


def _detected(measured: Measures, column: str) -> str:
    value = measured.get(column)
    return "" if value is None else f"{value:.0f}" if column == "flagged" else f"{100 * value:.1f}"
