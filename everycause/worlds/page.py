"""The page and the figures of a study or a map, from its table and its differences."""

from collections.abc import Iterator

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from codebirds.glyphs import CUES
from everycause.reporting.figures import color
from everycause.reporting.panels import TYPE, WIDTH, Mark, Panel, row_panels
from everycause.reporting.results import REFERENCE
from everycause.reporting.tables import markdown
from everycause.worlds.analysis import BASE, Difference, correlation
from everycause.worlds.measurement import IMAGE_MEASURES

NAMES = {
    "completeness": "completeness",
    "scene_gap": "scene gap",
    "accuracy/corruptions": "corruptions",
    "accuracy/renditions": "renditions",
    "accuracy/sketch": "sketch",
}
"""Measure → its name in tables and figures."""
STRONGEST = 30
"""Points at which the colors of the map end."""
COMPLETE = "completeness"
README_MEASURES = {
    name: NAMES[name] for name in (COMPLETE, "accuracy/renditions", "accuracy/sketch", "accuracy/corruptions")
}
"""Measures of the short table."""
BASE_MEASURES = {
    "accuracy/test": "test",
    "accuracy/scene_shift/independent": "free scene",
    "scene_gap": "scene gap",
    "accuracy/scene_shift/scene_only": "scene only",
    "erasures/1/worst": "1 erased, worst",
    "completeness": "completeness",
}
"""Measures of the base that tell worlds apart, in percent."""


def study_page(table: pd.DataFrame, found: list[Difference], where: str) -> Iterator[str]:
    """Everything that a study says, in Markdown.

    Args:
        table: Every measure of every row.
        found: The differences between rows.
        where: On which machine it was measured.
    """
    seeds = table.seed.nunique()
    yield "# Study of worlds\n"
    yield f"{seeds} training seeds in each world, on {where}. Shares in percent, mean ± deviation over seeds.\n"
    yield "Written by `make study` from `study.csv`; what was asked beforehand stands in [the log](../log.md).\n"
    yield "## The worlds, as the base sees them\n"
    yield markdown(["world", *BASE_MEASURES.values(), "causes used", *CUE_NAMES], list(_base_lines(table)))
    for world in table.world.unique():
        here = table[table.world == world]
        yield f"\n## World `{world}`\n"
        yield markdown(["row", "test", *NAMES.values(), "causes used"], list(_row_lines(here)))
        yield (
            "\nDifferences in points with 95 % intervals over seeds and test images, bold where they exclude 0. "
            "p-values by exact sign flips over seeds, adjusted by Holm over this table, stand in `differences.csv`: "
            f"with {seeds} seeds none can fall below {2 ** (1 - seeds):.3f} before the adjustment.\n"
        )
        yield markdown(["row", "against", *NAMES.values()], list(_difference_lines(found, world)))
        together = correlation(table, world)
        yield (
            f"\nRank correlation of completeness with robustness (mean of corruptions, renditions and sketch) over "
            f"{seeds * here.row.nunique()} runs: {together.mean:.2f} [{together.low:.2f}, {together.high:.2f}], "
            "interval over seeds."
        )


def readme_table(table: pd.DataFrame, found: list[Difference]) -> str:
    """The rows in the first world of a study, and the completeness that each gains over `continued` in every world."""
    worlds = list(table.world.unique())
    here, lines = table[table.world == worlds[0]], []
    gains = {(one.where.world, one.row): one for one in found if (one.reference, one.measure) == (REFERENCE, COMPLETE)}
    for row, values in here.groupby("row", sort=False):
        by_measure = {measure: one.value for measure, one in values.groupby("measure")}
        cells = [_spread(by_measure[name]) if name in by_measure else "" for name in README_MEASURES]
        lines.append([f"`{row}`", *cells, *(_gain(gains.get((world, str(row)))) for world in worlds)])
    return markdown(["row", *README_MEASURES.values(), *(f"gain in `{world}`" for world in worlds)], lines)


def _gain(one: Difference | None) -> str:
    if one is None:
        return ""
    mean, low, high = (100 * value for value in one.interval)
    shown = f"{mean:+.1f} [{low:+.1f}, {high:+.1f}]"
    return f"**{shown}**" if low > 0 or high < 0 else shown


CUE_NAMES = [cue.name for cue in CUES]


def _spread(values: pd.Series, scale: float = 100) -> str:
    deviation = f" ± {scale * values.std():.1f}" if len(values) > 1 else ""
    return f"{scale * values.mean():.1f}{deviation}"


def _base_lines(table: pd.DataFrame) -> Iterator[list[str]]:
    for world, here in table[table.row == BASE].groupby("world", sort=False):
        by_measure = {measure: values.value for measure, values in here.groupby("measure")}
        shares = [
            f"{100 * by_measure[name].mean():.0f}"
            for name in (f"reliance/{i}" for i in range(len(CUES)))
            if name in by_measure
        ]
        shares += [""] * (len(CUES) - len(shares))
        causes = _spread(by_measure["effective_causes"], 1)
        yield [f"`{world}`", *(_spread(by_measure[name]) for name in BASE_MEASURES), causes, *shares]


def _row_lines(table: pd.DataFrame) -> Iterator[list[str]]:
    for row, here in table.groupby("row", sort=False):
        by_measure = {measure: values.value for measure, values in here.groupby("measure")}
        shown = ["accuracy/test", *NAMES]
        cells = [_spread(by_measure[name]) if name in by_measure else "" for name in shown]
        yield [f"`{row}`", *cells, _spread(by_measure["effective_causes"], 1)]


def _difference_lines(found: list[Difference], world: str) -> Iterator[list[str]]:
    pairs = dict.fromkeys((one.row, one.reference) for one in found if one.where.world == world)
    for row, reference in pairs:
        by_measure = {
            one.measure: one for one in found if (one.where.world, one.row, one.reference) == (world, row, reference)
        }
        yield [f"`{row}`", f"`{reference}`", *(_gain(by_measure.get(name)) for name in NAMES)]


def study_figure(table: pd.DataFrame, found: list[Difference]) -> Figure:
    """For each world the completeness of every row, a small dot for each seed, and below it the gain over `continued`.

    Gains have 95 % intervals over seeds and images.
    """
    panels = []
    for world in table.world.unique():
        here = table[(table.world == world) & (table.measure == COMPLETE)]
        values = {str(row): values.value.to_numpy() for row, values in here.groupby("row", sort=False)}
        panels.append(Panel(str(world), {row: Mark(float(one.mean()), dots=one) for row, one in values.items()}))
    for world in table.world.unique():
        gains = {
            one.row: Mark(*one.interval)
            for one in found
            if (one.where.world, one.reference, one.measure) == (world, REFERENCE, COMPLETE)
        }
        panels.append(Panel(f"{world}: gain", gains, 0.0, digits=1, signed=True))
    worlds = table.world.nunique()
    return row_panels(panels, color, f"above: {COMPLETE}, percent; below: points gained over {REFERENCE}", worlds)


def map_figure(found: list[Difference]) -> Figure:
    """Difference from `continued` over dominance and scene correlation, one panel for each row and measure.

    Numbers are in points; where their 95 % interval includes 0 they are gray.
    """
    shown = [one for one in found if one.reference == REFERENCE]
    rows, measures = (
        list(dict.fromkeys(one.row for one in shown)),
        [name for name in NAMES if name in {one.measure for one in shown}],
    )
    size = (max(WIDTH, 1.9 * len(rows)), 1.7 * len(measures) + 0.5)
    figure, axes = plt.subplots(len(measures), len(rows), figsize=size, squeeze=False, layout="constrained")
    for across, measure in zip(axes, measures, strict=True):
        for axis, row in zip(across, rows, strict=True):
            _panel(axis, [one for one in shown if (one.row, one.measure) == (row, measure)], measure == "scene_gap")
            axis.set_title(f"{row}: {NAMES[measure]}", fontsize=TYPE + 1, loc="left")
            axis.tick_params(labelsize=TYPE, length=2)
    for axis in axes[-1]:
        axis.set_xlabel("scene correlation", fontsize=TYPE)
    for axis in axes[:, 0]:
        axis.set_ylabel("cue dominance", fontsize=TYPE)
    title = "Points gained over continued training (blue: better, red: worse; gray: no difference shown)"
    figure.suptitle(title, fontsize=TYPE + 1)
    return figure


def map_page(found: list[Difference], seeds: int, where: str) -> Iterator[str]:
    """When each row helps and when it harms, in Markdown.

    Args:
        found: The differences between rows.
        seeds: Number of training seeds in each cell.
        where: On which machine it was measured.
    """
    cells = len({one.where for one in found})
    yield "# Map of worlds: when does counterfactual training help?\n"
    yield (
        f"{cells} worlds × {seeds} training seeds, on {where}. Written by `make map`; every measure stands in "
        "`map.csv`, every difference in `differences.csv`.\n"
    )
    yield "![Points gained over continued training in every world](map.png)\n"
    yield (
        "In how many of the worlds a row lies above / below the one in brackets, by 95 % intervals without 0. Less is "
        "better in the scene gap alone.\n"
    )
    rows = list(dict.fromkeys((one.row, one.reference) for one in found))
    lines = [[f"`{row}` ({other})", *(_score(found, row, other, name) for name in NAMES)] for row, other in rows]
    yield markdown(["row", *NAMES.values()], lines)
    for row in dict.fromkeys(one.row for one in found if one.reference == REFERENCE):
        yield f"\n## Completeness of `{row}` − `{REFERENCE}`, in points\n"
        here = [one for one in found if (one.row, one.reference, one.measure) == (row, REFERENCE, COMPLETE)]
        gains = {(one.where.dominance, one.where.scene_correlation): _gain(one) for one in here}
        across, down = sorted({scene for _, scene in gains}), sorted({strength for strength, _ in gains}, reverse=True)
        table = [
            [f"dominance {strength:g}", *(gains.get((strength, scene), "") for scene in across)] for strength in down
        ]
        yield markdown(["", *(f"scene {scene:g}" for scene in across)], table)


def _score(found: list[Difference], row: str, reference: str, measure: str) -> str:
    """In how many worlds a row is shown to be above and below another."""
    here = [one.interval for one in found if (one.row, one.reference, one.measure) == (row, reference, measure)]
    return f"{sum(one.low > 0 for one in here)} / {sum(one.high < 0 for one in here)}"


def noise_figure(table: pd.DataFrame) -> Figure:
    """How each row's completeness and its reliance on the scene change with the share of flipped training labels.

    Lines are means over seeds, dots single seeds.
    """
    measures = {
        "accuracy/test": "test accuracy", "completeness": "completeness",
        "counter_gap": "usual minus unusual scenes", "scene_gap": "scene gap",
    }  # fmt: skip
    figure, axes = plt.subplots(1, len(measures), figsize=(3.4 * len(measures), 3.4), layout="constrained")
    for axis, (measure, name) in zip(axes, measures.items(), strict=True):
        here = table[table.measure == measure]
        for row, values in here.groupby("row", sort=False):
            means = values.groupby("label_noise").value.mean()
            axis.plot(values.label_noise, 100 * values.value, ".", color=color(str(row)), alpha=0.5)
            axis.plot(means.index, 100 * means, color=color(str(row)), label=row)
        axis.set(title=name, xlabel="flipped training labels", ylabel="percent")
    axes[0].legend(fontsize=8)
    return figure


def noise_page(table: pd.DataFrame, where: str) -> Iterator[str]:
    """Everything that a study of label noise says, in Markdown.

    Args:
        table: Every measure of every row.
        where: On which machine it was measured.
    """
    yield f"# Label noise in the world `{table.world.iloc[0]}`\n"
    yield f"{table.seed.nunique()} training seeds, on {where}. Shares in percent, mean ± deviation over seeds.\n"
    yield "Some training labels are another class's; validation and test labels are right. Written by `make noise`.\n"
    lines = []
    for (noise, row), here in table.groupby(["label_noise", "row"], sort=False):
        by_measure = {measure: values.value for measure, values in here.groupby("measure")}
        shown = ["accuracy/test", "counter_gap", *NAMES]
        lines.append(
            [
                f"{100 * noise:g} %",
                f"`{row}`",
                *(_spread(by_measure[name]) if name in by_measure else "" for name in shown),
            ]
        )
    yield markdown(["flipped", "row", "test", "usual − unusual scenes", *NAMES.values()], lines)


def question_figures(table: pd.DataFrame) -> dict[str, Figure]:
    """One figure for each question: dots are seeds, lines and bars means.

    Args:
        table: Columns as questions.COLUMNS.
    """
    made = {}
    here = table[table.question == "fidelity"]
    figure, axes = plt.subplots(1, 2, figsize=(8, 3.4), layout="constrained")
    for axis, rate in zip(axes, ("keep_rate", "disable_flip_rate"), strict=True):
        for prefix, name, shade in (
            ("", "the image's filters", "#d98c00"),
            ("random/", "as many random ones", "#999999"),
        ):
            values = here[here.measure == f"{prefix}{rate}"]
            wide = values.pivot_table(index="setting", columns="seed", values="value")
            wide = wide.loc[sorted(wide.index, key=int)]
            axis.plot(range(len(wide)), 100 * wide.to_numpy(), ".", color=shade)
            axis.plot(range(len(wide)), 100 * wide.mean(axis=1), color=shade, label=name)
        accuracy = here[here.measure == "accuracy"].groupby("setting").value.mean()
        axis.set_xticks(range(len(wide)), [f"{name}\n({100 * accuracy[name]:.0f} %)" for name in wide.index])
        axis.set(title=rate.replace("_", " "), xlabel="epochs of the base (validation accuracy)", ylabel="percent")
    axes[0].legend(fontsize=8)
    made["fidelity"] = figure
    for question, measure in (("overfitting", "completeness"), ("classes", "classes_that_lose")):
        here = table[(table.question == question) & (table.measure == measure)]
        settings, rows = list(dict.fromkeys(here.setting)), list(dict.fromkeys(here.row))
        figure, axis = plt.subplots(figsize=(6, 3.4), layout="constrained")
        for number, row in enumerate(rows):
            values = [100 * here[(here.row == row) & (here.setting == setting)].value for setting in settings]
            places = np.arange(len(settings)) + (number - (len(rows) - 1) / 2) * 0.8 / len(rows)
            axis.bar(places, [one.mean() for one in values], 0.75 / len(rows), alpha=0.6, label=row)
            for place, one in zip(places, values, strict=True):
                axis.plot([place] * len(one), one, ".", color="#222222")
        axis.set_xticks(range(len(settings)), [f"{setting} training images" for setting in settings])
        axis.set_ylabel(f"{measure.replace('_', ' ')}, percent")
        axis.legend(fontsize=8)
        made[question] = figure
    return made


def _panel(axis: Axes, found: list[Difference], smaller_is_better: bool) -> None:
    strengths, correlations = (sorted({one.where[place] for one in found}) for place in (1, 2))
    values = np.full((len(strengths), len(correlations)), np.nan)
    for one in found:
        place = strengths.index(one.where.dominance), correlations.index(one.where.scene_correlation)
        values[place] = 100 * one.interval.mean
        clear = one.interval.low > 0 or one.interval.high < 0
        dark = abs(values[place]) > STRONGEST / 2
        axis.text(
            place[1], place[0], f"{round(values[place]) + 0:+d}", ha="center", va="center", fontsize=TYPE,
            color="#888888" if not clear else "white" if dark else "black", fontweight="bold" if clear else "normal",
        )  # fmt: skip
    axis.imshow(
        -values if smaller_is_better else values,
        cmap="RdBu",
        vmin=-STRONGEST,
        vmax=STRONGEST,
        origin="lower",
        aspect="auto",
    )
    axis.set_xticks(range(len(correlations)), [f"{value:g}" for value in correlations])
    axis.set_yticks(range(len(strengths)), [f"{value:g}" for value in strengths])


assert list(NAMES) == list(IMAGE_MEASURES)
