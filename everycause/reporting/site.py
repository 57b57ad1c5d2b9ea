"""The page: one HTML file that needs no network, from the files of a report and, published, from those of all studies.

Every number on it is read from these files; the prose says only what holds whatever they are.
"""

import re
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from everycause.artifacts import read_json
from everycause.errors import UserError
from everycause.reporting import answers
from everycause.reporting.examples import read_examples
from everycause.reporting.html import html, image, sections
from everycause.reporting.page import CAPTIONS
from everycause.reporting.tables import markdown, plain

RUN_FIGURES = ("completeness.png", "reliance.png", "differences.png", "accuracies.png", "corruptions.png")
COUNTERFACTUAL_MEASURES = {
    "flip": "prediction flips", "decoder_flip": "an independent decoder agrees",
    "parts_towards": "changed parts that go to the target's", "scene_stayed": "scene stays",
    "on_parts": "share of the change on parts", "l1": "mean change of a color", "ssim": "SSIM",
}  # fmt: skip
ADVISED = ("masks", "object_exchange")
ABLATIONS = ("lambdas", "augment", "confidence", "frequency", "sparsity")


class Part(NamedTuple):
    """One part of the page."""

    anchor: str
    title: str
    body: Markup
    folded: bool = False
    """Whether it opens when it is asked for: details that most readers pass over."""


def page(run: Path, reports: Path | None, out: Path) -> str:
    """The page as HTML.

    Args:
        run: Folder of the report of a run (reports/run or reports/results).
        reports: Folder of all published reports; None for the page of the run alone.
        out: Folder of the page, for its links.

    Raises:
        UserError: a file that the page shows is missing or damaged; the sentence says what makes it.
    """
    environment = Environment(
        loader=PackageLoader("everycause.reporting", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    examples = [_shown(run, one) for one in read_examples(run)]
    before = [] if reports is None else list(_answers(reports, out))
    after = [] if reports is None else list(_documents(reports, out))
    parts = [*before, *run_parts(run, out, reports is not None), *after]
    text = environment.get_template("page.html.j2").render(
        published=reports is not None, hero=_hero(examples), examples=examples, parts=parts
    )
    numbers = count(1)  # a screen reader lists tables by name, so names differ
    return re.sub(r'aria-label="Table:', lambda _: f'aria-label="Table {next(numbers)}:', text)


def run_parts(run: Path, out: Path, published: bool) -> Iterator[Part]:
    """What a report of one run says."""
    report = run / "results.md"
    if not report.is_file():
        raise UserError(f"{report} does not exist: run `dvc repro`, or name the folder of a report")
    text = sections(report.read_text(encoding="utf-8"))
    figures = "\n\n".join(f"![{CAPTIONS[name]}]({name})" for name in RUN_FIGURES if (run / name).is_file())
    differences = [f"## {title}\n\n{body}" for title, body in text.items() if title.startswith("Differences")]
    rows = f"## Rows\n\n{text['Rows']}" if "Rows" in text else ""
    body = "\n\n".join([text[""], *differences, rows, figures])
    title = "One run in detail" if published else "Results"
    yield Part("run", title, Markup(html(body, run, out)))
    yield from _part(
        "masks", "Explanations", text, run, out, ("Masks of the base", "Sets that flip"), "faithfulness.png"
    )
    filters = ("Filters of the base", "Filter terms", "Recall per class")
    yield from _part("filters", "Filters", text, run, out, filters, "filter_heat_map.png", "top_filters.png")
    detection = ("Misclassifications", "Calibration", "Probability")
    yield from _part("errors", "Errors told from filters", text, run, out, detection, "detection.png")


def _part(
    anchor: str, title: str, text: dict[str, str], run: Path, out: Path, wanted: tuple[str, ...], *pictures: str
) -> Iterator[Part]:
    """Some sections of a report with its figures; nothing where it has none of them."""
    chosen = [f"## {name}\n\n{body}" for name, body in text.items() if name.startswith(wanted)]
    if chosen:
        chosen += [f"![{CAPTIONS[name]}]({name})" for name in pictures if (run / name).is_file()]
        yield Part(anchor, title, Markup(html("\n\n".join(chosen), run, out)), folded=True)


def _answers(reports: Path, out: Path) -> Iterator[Part]:
    """What the published studies say, the answer first."""
    study, grid = (_differences(reports / name) for name in ("study", "map"))
    body = (
        f"{answers.answer_table(study, grid)}\n\nGains in completeness over {_seeds(reports)} seeds, in points, with "
        "95 % intervals over seeds and test images; bold where they exclude 0. [The study](study/study.md), "
        f"[the map](map/map.md).\n\n{_read(reports / 'study' / 'readme_table.md', 'make study')}\n\n"
        "![Completeness of every row in three worlds, a dot for each seed](study/study.png)\n\n"
        "![Points gained over continued training in sixteen worlds](map/map.png)"
    )
    yield Part("answer", "The answer", Markup(html(body, reports, out)))
    prices = " ".join(filter(None, (answers.price(grid, row) for row in ADVISED)))
    text = (
        "Completeness gained over continued training in the worlds of the map, from the least to the most:\n\n"
        f"{answers.advice_table(grid)}\n\n{prices} Rows are explained [below](#run). On photographs less is known: one "
        "seed of one data set, in the next part."
    )
    yield Part("advice", "What to do with it", Markup(html(text, reports, out)))
    names = ("pacs", "cue_conflict", "imagenet_samples")
    found = [file for name in names if (file := reports / "photographs" / f"{name}.md").is_file()]
    photographs = [html(_lowered(file.read_text(encoding="utf-8")), file.parent, out) for file in found]
    yield Part("photographs", "Photographs", Markup("\n".join(photographs)))


def _documents(reports: Path, out: Path) -> Iterator[Part]:
    """Details that are Markdown already, and tables that become it."""
    images = reports / "counterfactuals"
    told = f"{_counterfactual_table(images / 'table.csv')}\n\n![Originals, images changed by each method](gallery.png)"
    yield Part("counterfactuals", "Counterfactual images", Markup(html(told, images, out)))
    sweep = _lowered(_read(reports / "tuning" / "report.md", "make sweep"))
    grids = [f"![Grid of {name}](../ablations/{name}/grid.png)" for name in ABLATIONS]
    yield Part("sweeps", "Sweeps", Markup(html("\n\n".join([sweep, *grids]), reports / "tuning", out)), folded=True)
    costs = _lowered(_read(reports / "benchmarks" / "cost.md", "make bench")) + "\n\n" + _device_table(reports)
    yield Part("costs", "Costs", Markup(html(costs, reports / "benchmarks", out)), folded=True)
    for name, title in (("paper", "Published figures beside ours"), ("deviations", "Where we differ from the papers")):
        text = _lowered(_read(reports / f"{name}.md", "make page"))
        yield Part(name, title, Markup(html(text, reports, out)), folded=True)


def _differences(folder: Path) -> pd.DataFrame:
    _read(folder / "differences.csv", f"make {folder.name}")
    return pd.read_csv(folder / "differences.csv")


def _read(path: Path, command: str) -> str:
    if not path.is_file():
        raise UserError(f"the page needs '{path}', which is missing: run `{command}`")
    return path.read_text(encoding="utf-8")


def _seeds(reports: Path) -> int:
    return int(pd.read_csv(reports / "study" / "study.csv", usecols=["seed"]).seed.nunique())


def _lowered(text: str) -> str:
    """A document whose headings stand a level lower, the first one included."""
    return "\n".join(f"#{line}" if line.startswith("#") else line for line in text.splitlines())


def _counterfactual_table(file: Path) -> str:
    """Methods by measures, with intervals."""
    _read(file, "make counterfactuals")
    found, lines = pd.read_csv(file), []
    for method, here in found.groupby("method", sort=False):
        by_measure = {one.measure: one for one in here.itertuples()}
        cells = [_cell(by_measure[name]) if name in by_measure else "" for name in COUNTERFACTUAL_MEASURES]
        lines.append([f"`{method}`", *cells])
    return markdown(["method", *COUNTERFACTUAL_MEASURES.values()], lines)


def _cell(one: Any) -> str:
    return f"{one.value:.2f}" if pd.isna(one.low) else f"{one.value:.2f} [{one.low:.2f}, {one.high:.2f}]"


def _device_table(reports: Path) -> str:
    """The figures of the device script."""
    measured = read_json(reports / "benchmarks" / "device.json", "benchmarks.device")
    lines = [[f"`{name}`", value if isinstance(value, str) else f"{value:,.4g}"] for name, value in measured.items()]
    return f"## On one GPU\n\n{markdown(['measure', 'value'], lines)}"


def _shown(run: Path, example: dict[str, Any]) -> dict[str, Any]:
    """An example with its pictures embedded and its probabilities in percent."""
    name = plain(example["class"])
    texts = {
        "image": f"A training image of class {name}",
        "parts": "Its parts, each in a color of its own",
        "removed": "The regions that are replaced, in red",
        "counterfactual": "The counterfactual image, with background in these regions",
    }
    pictures = {kind: Markup(image(run / file, texts[kind], "pixels")) for kind, file in example["files"].items()}
    return example | {"pictures": pictures}


def _hero(examples: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The example of the question: the first one that the base loses and the retrained model keeps, or the first."""

    def tells(one: dict[str, Any]) -> bool:
        models = list(one["seen"].values())
        return len(models) == 2 and [model["counterfactuals"]["probability"] > 0.5 for model in models] == [False, True]

    return next((one for one in examples if tells(one)), next(iter(examples), None))
