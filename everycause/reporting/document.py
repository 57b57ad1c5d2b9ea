"""The written report: tables first, then the explanations' own measures, then the figures."""

from everycause.reporting import tables
from everycause.reporting.explanations import Faithfulness, faithfulness_table
from everycause.reporting.results import Results

Summary = dict[str, float]


def document(results: Results, filters: Summary, masks: Summary, faithfulness: Faithfulness, figures: dict[str, str]) -> str:
    """The report in Markdown; `figures` maps file names to captions."""
    parts = ["# Results", "", *tables.header(results), "", tables.main_table(results), ""]
    if differences := tables.difference_table(results):
        parts += ["## Difference in accuracy from `continued`, in points", "", differences, ""]
    parts += ["## Rows", "", tables.meaning_table(results), ""]
    parts += ["## Masks of the base (first seed)", "", summary_table(masks, MASKS), ""]
    if faithfulness:
        parts += ["## What flips a prediction, selector by selector (first seed, validation images)", "", faithfulness_table(faithfulness), ""]
    parts += ["## Filters of the base (first seed)", "", summary_table(filters, FILTERS), "", "## Figures", ""]
    for name, caption in figures.items():
        parts += [f"![{caption}]({name})", "", f"*{caption}*", ""]
    return "\n".join(parts).rstrip() + "\n"


MASKS = {
    "screened": "images looked at", "misclassified": "… predicted wrongly, so not searched", "not_confident": "… not confident enough", "searched": "images searched", "flip_rate": "share whose prediction flips", "regions_at_flip": "regions at the flip",
    "area_at_flip": "share of the area at the flip", "forwards_per_image": "forward passes per image", "share_on_parts": "share of the mask on parts",
    "random/share_on_parts": "… of random regions", "flip_distance": "parts destroyed at the flip", "random/flip_distance": "… by random regions",
    "code_distance": "parts that must go before a complete classifier may flip", "pointing_game": "first region touches a part",
}  # fmt: skip
FILTERS = {
    "filters": "filters of the layer", "filters_per_image": "minimum correct filters per image", "filters_per_class": "global filters per class",
    "filters_per_class_detection": "… above the detection threshold",
    "mc_keep_rate": "prediction kept on the minimum correct filters", "random_keep_rate": "… on random filters, as many",
    "mc_disable_flip_rate": "prediction lost without them", "random_disable_flip_rate": "… without random filters, as many",
    "smallest_support": "images behind the least supported class",
}  # fmt: skip


def summary_table(summary: Summary, names: dict[str, str]) -> str:
    """A two-column table of the measures that there are."""
    return tables.markdown(
        ["measure", "value"],
        [[label, f"{summary[key]:.3g}" if summary[key] < 100 else f"{summary[key]:.0f}"] for key, label in names.items() if key in summary],
    )
