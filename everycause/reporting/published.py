"""Every published figure that we know of, beside ours or with the reason why there is nothing to set beside it.

Published figures are typed here with their source; ours are read from the reports each time.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from everycause.reporting.answers import compared, interval
from everycause.reporting.html import sections
from everycause.reporting.tables import markdown

DEBUGGING, CFE = "arXiv 2501.11087 (filters, debugging)", "arXiv 2501.06831 (its filters)"
LIMA, SSCA, CECAS = "arXiv 2504.00470 (LIMA)", "arXiv 2511.12100 (SS-CA)", "arXiv 2507.09881 (CECAS)"
GEIRHOS, CORRUPTIONS = "Geirhos et al., ICLR 2019", "Hendrycks and Dietterich, ICLR 2019"


class Published(NamedTuple):
    """One published figure."""

    source: str
    what: str
    value: str
    ours: Callable[[Path], str]
    """Reads our figure from the folder of reports; empty if there is none."""
    caveat: str
    """How far the two can be compared."""


def _none(_reports: Path) -> str:
    return ""


def cell(reports: Path, section: str, names: tuple[str, ...], column: str) -> str:
    """One cell of a table in the report of the published run: in the line that has all names; empty where none has."""
    report = reports / "results" / "results.md"
    text = sections(report.read_text(encoding="utf-8")) if report.is_file() else {}
    body = next((body for title, body in text.items() if title.startswith(section)), "")
    lines = [[one.strip() for one in row.strip("|").split("|")] for row in body.splitlines() if row.startswith("|")]
    header: list[str] = []
    for cells in lines:
        if set("".join(cells)) <= set("-:"):
            continue
        if column in cells:
            header = cells
        elif header and set(names) <= set(cells):
            return cells[header.index(column)]
    return ""


def _difference(row: str, reference: str, world: str = "premise") -> Callable[[Path], str]:
    def read(reports: Path) -> str:
        file = reports / "study" / "differences.csv"
        here = compared(pd.read_csv(file), row, reference) if file.is_file() else pd.DataFrame(columns=["world"])
        for one in here[here.world == world].itertuples():
            return f"{interval(one.mean, one.low, one.high).strip('*')} points of completeness in `{world}`"
        return ""

    return read


def _measure(file: str, by: dict[str, str], pattern: str) -> Callable[[Path], str]:
    """Values of a table in the reports, for a pattern such as '{shape_bias:.1%}'."""

    def read(reports: Path) -> str:
        if not (reports / file).is_file():
            return ""
        table = pd.read_csv(reports / file)
        for column, value in by.items():
            table = table[table[column] == value]
        values = dict(zip(table.measure, table.value, strict=True))
        names = re.findall(r"{([\w/]+)[:}]", pattern)
        if not set(names) <= set(values):
            return ""
        plain = pattern
        for name in names:  # format takes no slash in a name
            plain = plain.replace("{" + name, "{" + name.replace("/", "_"))
        return plain.format(**{name.replace("/", "_"): value for name, value in values.items()})

    return read


def _filters(reports: Path) -> str:
    count = cell(reports, "Filters of the base", ("`all_classes`",), "filters")
    kept = cell(reports, "Filters of the base", ("`all_classes`",), "prediction kept")
    return f"{count} of 96 filters, prediction kept {kept}" if count else ""


def _errors(reports: Path) -> str:
    split = "renditions"
    found = cell(reports, "Misclassifications of the base", (split, "`filters`"), "recall")
    return f"{found} % of the errors on {split}" if found else ""


FIGURES = (
    Published(
        SSCA,
        "gains by counterfactual masks",
        "tables not public when this was written",
        _difference("masks", "continued"),
        "sign alone, in the world where its premise holds",
    ),
    Published(
        SSCA, "… beyond random regions", "not known", _difference("masks", "masks_random"), "a control that we add"
    ),
    Published(
        LIMA,
        "insertion / deletion AUC, ResNet-101, ImageNet",
        "0.793 / 0.145",
        _measure(
            "photographs/imagenet_samples.csv",
            {"selector": "bidirectional"},
            "{insertion_auc/mean:.3f} / {deletion_auc/mean:.3f} (Lite0)",
        ),
        "order of magnitude: other network, photographs, regions and baseline",
    ),
    Published(
        LIMA,
        "insertion / deletion AUC, CLIP ViT-L/14",
        "0.824 / 0.139",
        _none,
        "not comparable: these weights are not in a package registry",
    ),
    Published(
        LIMA,
        "forward passes per image, exhaustive greedy, about 41 regions",
        "about 1,740",
        _measure(
            "photographs/imagenet_samples.csv",
            {"selector": "counterfactual"},
            "{forward_passes:.0f} (49 regions, until the prediction flips)",
        ),
        "ours stops at the flip, theirs ranks every region",
    ),
    Published(
        CFE,
        "minimum correct filters per image, CUB, λ = 1 / 2 / 4",
        "20.5 / 14.5 / 10.1 of 512, kept 0.998 / 0.994 / 0.986",
        _filters,
        "other network and images; λ = 2",
    ),
    Published(
        DEBUGGING,
        "test accuracy of the base, VGG-16 on CUB-200-2011",
        "69.48 %",
        _none,
        "not comparable: neither CUB nor VGG-16's ImageNet weights are at hand (profiles/cub-vgg16.yaml)",
    ),
    Published(
        DEBUGGING,
        "test accuracy after debugging",
        "70.64 % (+1.16 points)",
        _difference("filters", "continued"),
        "theirs has no control; ours is against continued training",
    ),
    Published(
        DEBUGGING,
        "… beyond random filters",
        "not reported",
        _difference("filters", "filters_random"),
        "a control that we add",
    ),
    Published(
        DEBUGGING,
        "recall of misclassifications",
        "38.4 %, with 256 to 370 correct predictions flagged",
        _errors,
        "other network, images and errors",
    ),
    Published(
        DEBUGGING,
        "active filters per image over debugging (authors' log)",
        "303.1 → 302.9 of 512",
        lambda reports: cell(reports, "Filter terms", ("`filters`",), "active filters"),
        "of 96 filters; both move little",
    ),
    Published(
        CECAS,
        "all figures",
        "no tables were available",
        _none,
        "not comparable: only its abstract and reviews were at hand, and no code",
    ),
    Published(
        GEIRHOS,
        "shape bias, ResNet-50",
        "21.4 %",
        _measure(
            "photographs/cue_conflict.csv",
            {"model": "tf_efficientnet_lite0", "class": "all"},
            "{shape_bias:.1%} (EfficientNet-Lite0)",
        ),
        "same images and rule, another network",
    ),
    Published(
        CORRUPTIONS,
        "distortion of every corruption and severity, 64 pixels",
        "75 values",
        lambda _: "within 10 % (frost 20, elastic 15)",
        "held by a test",
    ),
    Published(
        CORRUPTIONS,
        "mean corruption error",
        "of released images",
        _none,
        "not comparable: our corruptions are made anew; `profiles/imagenet-resnet50.yaml` reads released ones",
    ),
)
"""In the order of the table."""


def paper(reports: Path) -> str:
    """The table of published figures in Markdown.

    Args:
        reports: Folder of all reports.
    """
    lines = [[one.source, one.what, one.value, one.ours(reports), one.caveat] for one in FIGURES]
    return (
        "# Published figures beside ours\n\n"
        "Made by `make page`: ours are read from the reports, theirs are typed in `everycause/reporting/published.py`. "
        "An empty cell: there is nothing of ours that could stand there.\n\n"
        + markdown(["source", "figure", "published", "ours", "comparable?"], lines)
        + "\n"
    )
