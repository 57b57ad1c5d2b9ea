"""The written report: the tables first, then what was found about explanations, then the figures."""

from matplotlib.figure import Figure

from everycause.reporting import charts, figures, pictures, tables
from everycause.reporting.results import REFERENCE, Findings, Results

CAPTIONS = {
    "completeness.png": "Accuracy with parts erased: a classifier that has learned every cause reaches the optimum.",
    "reliance.png": "The parts that a classifier's accuracy rests on (exact Shapley values over all subsets).",
    "scene_gap.png": "How much each row relies on the scene.",
    "accuracies.png": "Accuracy on every split.",
    "differences.png": "Differences from `continued` with 95 % intervals over seeds and test images, in points.",
    "shift_scatter.png": "Accuracy under shift beside accuracy on the test split.",
    "corruptions.png": "Accuracy under each corruption.",
    "rounds.png": "The rounds of `masks_rounds`: the parts that the model relies on, and the size of a flip.",
    "faithfulness.png": "Sets that flip a prediction, by every selector, for the base and retrained models.",
    "filter_terms.png": "The filter terms in the first and last epoch; rows without them only compute them.",
    "filter_heat_map.png": "The filters that each class needs, and how far classes share them.",
    "top_filters.png": "Images of some classes, the class activation map of their filters, and their top filters "
    "(number, share of the class's images that need it).",
    "detection.png": "Misclassifications told from filters, from random filters, and from the softmax.",
    "gallery.png": "Training images, the regions that are replaced, and a counterfactual image of each.",
    "exchange.png": "What is left of each object, in the scene of another image (`object_exchange`).",
    "contact_sheet.png": "The same test images in every split.",
}
"""The figures in the order of the report, with their captions."""
MASKS = {
    "screened": "images looked at",
    "misclassified": "… predicted wrongly, so not searched",
    "not_confident": "… not confident enough",
    "searched": "images searched",
    "flip_rate": "share whose prediction flips",
    "regions_at_flip": "regions at the flip",
    "area_at_flip": "share of the area at the flip",
    "forwards_per_image": "forward passes per image",
    "share_on_parts": "share of the mask on parts",
    "random/share_on_parts": "… of random regions",
    "flip_distance": "parts destroyed at the flip",
    "random/flip_distance": "… by random regions",
    "code_distance": "parts that must go before a complete classifier may flip",
    "pointing_game": "share of images whose first region touches a part",
}
FILTERS = {
    "filters": "filters of the layer",
    "filters_per_class": "global filters per class",
    "filters_per_class_detection": "… above the detection threshold",
    "smallest_support": "images behind the least supported class",
}
INCORRECT = {
    "minimum_incorrect/filters_per_image": "minimum incorrect filters per image (towards the runner-up)",
    "minimum_incorrect/reach_rate": "runner-up reached",
    "minimum_incorrect/random/reach_rate": "… with the same amounts on random filters",
}


def drawn(results: Results, findings: Findings) -> dict[str, Figure]:
    """Every figure that the stored results allow, by file name, in the order of the report."""
    code, filters = findings.code, findings.filter_pictures
    some: dict[str, Figure | None] = {
        "accuracies.png": charts.accuracies(results),
        "shift_scatter.png": charts.scatter_figure(results),
        "differences.png": charts.difference_figure(results),
        "filter_terms.png": charts.terms_figure(findings.histories),
    }
    if results.has("accuracy/corruptions"):
        some["corruptions.png"] = charts.corruption_figure(results)
    if code is not None:
        some["completeness.png"] = charts.completeness_profiles(results, code)
        some["reliance.png"] = charts.reliance(results, findings.cues)
        some["scene_gap.png"] = charts.scene_gap(results, code["num_classes"])
    if findings.rounds:
        distance = None if code is None else code["distance"]
        some["rounds.png"] = figures.rounds_figure(findings.rounds, findings.cues, distance)
    if findings.faithfulness:
        some["faithfulness.png"] = charts.faithfulness_figure(findings.faithfulness)
    if filters is not None:
        some["filter_heat_map.png"] = pictures.heat_map(filters, findings.class_names)
        some["top_filters.png"] = pictures.filters_on_images(filters) if "maps" in filters.tensors else None
    if findings.detection is not None:
        ordered = tables.in_order(findings.detection, results.views)
        some["detection.png"] = charts.detection_figure(ordered)
    if findings.gallery is not None:
        some["gallery.png"] = pictures.gallery(findings.gallery)
    if findings.exchange is not None:
        some["exchange.png"] = pictures.gallery(findings.exchange)
    if findings.contact_sheet is not None:
        some["contact_sheet.png"] = pictures.contact_sheet(findings.contact_sheet)
    return {name: figure for name in CAPTIONS if (figure := some.get(name)) is not None}


def texts(results: Results, findings: Findings) -> list[str]:
    """Every text of a figure that comes from the user's data."""
    titles = findings.gallery.description["titles"] if findings.gallery is not None else []
    return [*findings.class_names, *results.views, *titles]


def document(results: Results, findings: Findings, figure_names: list[str]) -> str:
    """The report in Markdown; `figure_names` are the files beside it."""
    parts = ["# Results", "", *tables.header(results), ""]
    parts += [tables.main_table(results), "", f"Columns: {tables.column_meanings(results)}", ""]
    parts += _section("Rows", tables.meaning_table(results, findings.meanings))
    parts += _section(f"Differences in accuracy from `{REFERENCE}`, in points", tables.difference_table(results))
    parts += _section(
        "Probability of such differences under random signs (exact over seeds, Holm over splits)",
        tables.significance_table(results),
    )
    parts += _section("Calibration and class means", tables.calibration_table(results))
    if findings.masks is not None:
        parts += _section("Masks of the base (first seed)", tables.summary_table(findings.masks, MASKS))
    if findings.faithfulness:
        title = "Sets that flip a prediction, selector by selector (first seed, validation images)"
        parts += _section(title, tables.faithfulness_table(findings.faithfulness))
    parts += filters_of_the_base(findings)
    title = "Filter terms in the first and in the last epoch (rows without them in their loss only compute them)"
    parts += _section(title, tables.terms_table(findings.histories))
    title = f"Recall per class against `{REFERENCE}`, in points"
    parts += _section(title, tables.winners_table(results, findings.class_names))
    parts += misclassifications(results, findings)
    parts += ["## Figures", ""]
    for name in figure_names:
        parts += [f"![{CAPTIONS[name]}]({name})", "", f"*{CAPTIONS[name]}*", ""]
    return "\n".join(parts).rstrip() + "\n"


def filters_of_the_base(findings: Findings) -> list[str]:
    """What the filters are, how good each generator is, and whether classes share filters as they share parts."""
    summary = findings.filters
    if summary is None:
        return []
    told = "Generators of local filters, on correct and confident validation images, beside random sets of equal size:"
    parts = _section("Filters of the base (first seed)", f"Filters are {summary['filters_are']}.")
    parts += [tables.summary_table(summary, FILTERS), ""]
    parts += [told, "", tables.generators_table(summary), ""]
    parts += [tables.summary_table(summary, INCORRECT), ""]
    if "overlap/random" in summary:
        counts = sorted(int(end) for name in summary if name.startswith("overlap/") and (end := name[8:]).isdigit())
        shared = [f"{summary[f'overlap/{n}']:.3f} with {n} part{'s' if n != 1 else ''} in common" for n in counts]
        parts += [
            "Overlap of the filters of two classes (shared over all, frequency above "
            f"{summary['frequency_threshold']:g}): {'; '.join(shared)}; "
            f"{summary['overlap/random']:.3f} if they were random.",
            "",
        ]
    return parts


def misclassifications(results: Results, findings: Findings) -> list[str]:
    """Every detector on every split, and what relabelling does."""
    if findings.detection is None:
        return []
    report = tables.in_order(findings.detection, results.views)
    rule = (
        "Softmax and entropy flag as many validation images as the paper's rule (`filters`) does; in percent. FPR@95: "
        "the share of correct predictions that are flagged where 95 % of the wrong ones are."
    )
    new = (
        "New labels for the predictions that `filters` flags, among the likeliest classes (images corrected and broken "
        "in brackets; `runner_up` always takes the second):"
    )
    by_class = "Test split, class by class (predicted classes with errors or flags):"
    return [
        *_section("Misclassifications of the base, told from its filters (first seed)", rule),
        *(tables.detection_table(report), "", new, "", tables.relabelling_table(report), ""),
        *(by_class, "", tables.classes_table(report), ""),
    ]


def _section(title: str, text: str) -> list[str]:
    """A heading with a text; nothing where the text is empty."""
    return [f"## {title}", "", text, ""] if text else []
