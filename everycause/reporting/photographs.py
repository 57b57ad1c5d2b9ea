"""Tables, figures and pages of what was measured on photographs: shape bias, selectors and searches, rows on shifts."""

from collections.abc import Iterator
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from everycause.reporting.colors import SELECTOR_COLORS
from everycause.reporting.results import REFERENCE, Results
from everycause.reporting.tables import difference_table, main_table, markdown

MODEL_COLORS = ("#0072b2", "#d98c00", "#009e73", "#b3005e", "#56b4e9", "#7a6a53")
CAPTUM_COLORS = {
    "captum_grad_cam": "#7fcdbb",
    "captum_integrated_gradients": "#8c564b",
    "captum_occlusion": "#5b2a86",
}
PUBLISHED = (
    ("ResNet-101", "exhaustive greedy search", 0.7926, 0.1449),
    ("CLIP ViT-L/14", "exhaustive greedy search", 0.8239, 0.1388),
)
"""Network, method, insertion and deletion AUC that LIMA's authors give for 5,000 right ImageNet validation images."""
JUDGED = {"flipped": "flip_rate", "sizes": "set_size", "insertion": "insertion_auc", "deletion": "deletion_auc"}
"""Column of a line per photograph → name of its mean."""
ALL = "all"
"""The class that stands for all images."""
COST = {"forwards": "forward_passes", "seconds": "seconds"}
SEARCH_NAMES = {
    "fast": "fast (ours)",
    "greedy": "greedy, our objective and engine",
    "published": "greedy as published: four terms, photograph by photograph",
}
SPEEDUP = "photographs.search_speedup"
"""Seconds of the published greedy search over those of ours, on the same photographs and network."""
BAR = 10
"""What that ratio should be at least."""


def accuracy_table(results: Results) -> pd.DataFrame:
    """The accuracy of every row and seed on every split, as columns row, seed, split, accuracy from 0 to 1."""
    lines = [
        (row, seed, family, float(results.predictions[row, seed].correctness(family).mean()))
        for row in results.rows
        for seed in results.seeds
        for family in results.families()
    ]
    return pd.DataFrame(lines, columns=pd.Index(["row", "seed", "split", "accuracy"]))


def shifts_page(results: Results, title: str) -> Iterator[str]:
    """The accuracy of every row on every split, and what it gains over continued training, in Markdown."""
    first = results.predictions[results.rows[0], results.seeds[0]]
    images = ", ".join(f"{family} {len(first.correctness(family))}" for family in results.families())
    yield f"# {title}\n"
    yield f"Training seeds: {len(results.seeds)}. Accuracies in percent; images: {images}.\n"
    yield main_table(results)
    yield f"\nDifferences from `{REFERENCE}` in points, with 95 % intervals over seeds and test images:\n"
    yield difference_table(results)


def shape_bias_figure(table: pd.DataFrame) -> Figure:
    """Shape bias of every class and model with its interval, and of all images as a line; as figure 4 of the paper.

    Args:
        table: Columns model, class, measure, value, low, high.
    """
    bias = table[table.measure == "shape_bias"]
    models, names = list(bias.model.unique()), sorted(set(bias["class"]) - {ALL}, reverse=True)
    figure, axis = plt.subplots(figsize=(7.5, 0.36 * len(names) * max(1.0, 0.45 * len(models)) + 1.2))
    for number, model in enumerate(models):
        own = bias[bias.model == model].set_index("class")
        shade = MODEL_COLORS[number % len(MODEL_COLORS)]
        offset = 0.24 * ((len(models) - 1) / 2 - number)
        lines = own.reindex(names)
        places = np.arange(len(names)) + offset
        axis.hlines(places, lines.low, lines.high, color=shade, linewidth=1.2, alpha=0.6)
        axis.plot(lines.value, places, "o", color=shade, markersize=4)
        whole = own.loc[ALL]
        said = f"{model}: {100 * whole.value:.1f} % [{100 * whole.low:.1f}, {100 * whole.high:.1f}]"
        axis.axvline(whole.value, color=shade, linestyle="--", linewidth=1.2, label=said)
    axis.set(yticks=range(len(names)), yticklabels=names, xlim=(-0.02, 1.02), ylim=(-0.7, len(names) - 0.3))
    axis.set(
        xlabel="shape bias: 0 where all decisions are for the texture, 1 for the shape", ylabel="class of the shape"
    )
    axis.grid(axis="x", color="#dddddd", linewidth=0.6)
    axis.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0), fontsize=9)
    return figure


def selector_table(rankings: pd.DataFrame, searches: pd.DataFrame) -> pd.DataFrame:
    """Means over photographs, and the standard error of each: columns selector, measure, value.

    Measures of a baseline have its name behind a slash; of a set that never flipped the size counts as the largest.
    """
    found: list[tuple[str, str, float]] = []
    for selector, own in rankings.groupby("selector", sort=False):
        for baseline, lines in own.groupby("baseline", sort=False):
            for column, name in JUDGED.items():
                found += _mean(str(selector), f"{name}/{baseline}", lines[column])
        once = own[own.baseline == own.baseline.iloc[0]]
        for column, name in COST.items():
            found.append((str(selector), name, float(once[column].mean())))
        found.append((str(selector), "photographs", float(len(once))))
    return pd.DataFrame(found + list(search_measures(searches)), columns=pd.Index(["selector", "measure", "value"]))


def search_measures(searches: pd.DataFrame) -> Iterator[tuple[str, str, float]]:
    """The searches' means, and ratios between them over the photographs that both have searched."""
    kinds = {str(name): lines.set_index("photograph") for name, lines in searches.groupby("search", sort=False)}
    for name, lines in kinds.items():
        for column, measure in ({"flipped": "flip_rate", "sizes": "set_size"} | COST).items():
            yield f"search_{name}", measure, float(lines[column].astype(float).mean())
        yield f"search_{name}", "photographs", float(len(lines))
    fast = kinds["fast"]
    for name, lines in kinds.items():
        own = fast.loc[lines.index.intersection(fast.index)]
        lines = lines.loc[own.index]
        both = own.flipped.astype(bool) & lines.flipped.astype(bool)
        if name != "fast":
            yield f"search_{name}", "seconds_over_fast", float(lines.seconds.mean() / own.seconds.mean())
            yield f"search_{name}", "forward_passes_over_fast", float(lines.forwards.mean() / own.forwards.mean())
            yield f"search_{name}", "fast_flip_rate_minus", float(own.flipped.mean() - lines.flipped.mean())
            if both.any():
                yield f"search_{name}", "fast_set_size_over", float(own.sizes[both].mean() / lines.sizes[both].mean())
    if "published" in kinds:
        lines = kinds["published"]
        yield "search_fast", SPEEDUP, float(lines.seconds.mean() / fast.loc[lines.index].seconds.mean())


def _mean(selector: str, name: str, values: pd.Series) -> list[tuple[str, str, float]]:
    """A mean and its standard error over photographs."""
    numbers = values.astype(float)
    error = float(numbers.std(ddof=1) / np.sqrt(len(numbers))) if len(numbers) > 1 else float("nan")
    return [(selector, name, float(numbers.mean())), (selector, f"{name}/standard_error", error)]


def selector_figure(table: pd.DataFrame) -> Figure:
    """Insertion and deletion AUC of every selector with each baseline, and how many regions a flip takes."""
    means = _wide(table)
    judged = means.dropna(subset=["deletion_auc/mean"])
    figure, axes = plt.subplots(1, 3, figsize=(14, 4.2), sharey=True)
    titles = {
        "insertion_auc": "insertion AUC (more is better)",
        "deletion_auc": "deletion AUC (less is better)",
        "flip_rate": "photographs that flip",
    }
    places = np.arange(len(judged))[::-1]
    for axis, (measure, title) in zip(axes, titles.items(), strict=True):
        for baseline, marker, offset in (("mean", "o", 0.12), ("blur", "s", -0.12)):
            values, errors = judged[f"{measure}/{baseline}"], judged[f"{measure}/{baseline}/standard_error"]
            for place, selector in zip(places, judged.index, strict=True):
                shade = (SELECTOR_COLORS | CAPTUM_COLORS).get(selector, "#888888")
                axis.errorbar(
                    values[selector],
                    place + offset,
                    xerr=1.96 * errors[selector],
                    fmt=marker,
                    color=shade,
                    markerfacecolor=shade if baseline == "mean" else "white",
                )
        axis.set(
            title=title, xlim=(0, 1.02), yticks=places, yticklabels=[name.replace("_", " ") for name in judged.index]
        )
        axis.grid(axis="x", color="#dddddd", linewidth=0.6)
    for label, face in (("removed regions show the mean color", "#555555"), ("the blurred photograph", "white")):
        axes[0].plot([], [], "o" if face != "white" else "s", color="#555555", markerfacecolor=face, label=label)
    figure.legend(frameon=False, loc="upper center", ncols=2, bbox_to_anchor=(0.5, 1.06))
    figure.tight_layout()
    return figure


def shape_bias_page(table: pd.DataFrame) -> Iterator[str]:
    """Shape bias of every model, in Markdown."""
    yield "# Shape or texture\n"
    yield """1,200 images whose shape and texture are of different classes (Geirhos et al., ICLR 2019, CC BY 4.0):
decisions among 16 classes, in percent of the images, with 95 % intervals bootstrapped over images. The authors state a
shape bias of 21.4 % for ResNet-50. Written by `python -m stages.photographs`; every class is in
[cue_conflict.csv](cue_conflict.csv).
"""
    lines = []
    for model, own in table[table["class"] == ALL].groupby("model", sort=False):
        cells = [own[own.measure == name].iloc[0] for name in ("shape_bias", "shape", "texture", "other")]
        lines.append([str(model), *(f"{100 * c.value:.1f} [{100 * c.low:.1f}, {100 * c.high:.1f}]" for c in cells)])
    yield markdown(["model", "shape bias", "shape", "texture", "another class"], lines)
    yield "\n![Shape bias of every class](cue_conflict.png)"


def samples_page(table: pd.DataFrame, described: dict[str, Any]) -> Iterator[str]:
    """Selectors and searches on photographs of ImageNet, in Markdown."""
    network, masks, every = described["model"]["name"], described["masks"], described["every"]
    yield "# Selectors on photographs of ImageNet\n"
    part = "all of them" if every == 1 else f"each {every}th of them in the order of their names"
    largest = min(masks["max_regions"], masks["regions"] // 4)
    yield f"""{described["right"]} photographs that {network} predicts rightly, of {described["photographs"]}.
The sample has one photograph of each class; taken is {part}.
Every photograph is a {masks["partition"]} of {masks["regions"]} regions, of which a set has at most {largest}.
Masked images in {masks["precision"]}, on {described["device"]} with {described["threads"]} thread(s).
Seconds are those that the processor worked for this (on a GPU: wall clock). The network was probably trained on these
photographs: they tell about explanations, not about accuracy. Written by `python -m stages.photographs` from what
`make imagenet-samples` measured.
"""
    yield from _selectors(table)
    yield "\n![Insertion, deletion and flips](imagenet_samples.png)\n"
    yield from _searches(table)


def _selectors(table: pd.DataFrame) -> Iterator[str]:
    yield "## Selectors\n"
    yield """Each selector gives one order of the regions. Those that try regions out, and Captum's, saw the mean color
in place of removed ones; every order is judged with the mean color and with the blurred photograph. Mean ± standard
error over photographs. *Flips*: percent whose prediction changes; *regions*: removed until then, the largest set where
it never does. *Passes* are forward passes of the ranking, but of the counterfactual search those of its set alone;
*seconds* are those of the whole order. A selector with fewer photographs has ranked the first of them.
"""
    means = _wide(table)
    judged = means.dropna(subset=["deletion_auc/mean"])
    costs = ("photographs", "forward_passes", "seconds")
    lines = [
        [f"`{name}`", *(f"{row[one]:.{2 if one == 'seconds' else 0}f}" for one in costs)]
        for name, row in judged.iterrows()
    ]
    yield markdown(["selector", "photographs", "passes", "seconds"], lines)
    for baseline, said in (("mean", "the mean color"), ("blur", "the blurred photograph")):
        yield f"\nRemoved regions show {said}:\n"
        lines = [[f"`{name}`", *_cells(row, baseline)] for name, row in judged.iterrows()]
        yield markdown(["selector", "flips", "regions", "insertion AUC", "deletion AUC"], lines)
    yield """
Published by LIMA's authors (arXiv 2504.00470) for other networks, other photographs (5,000 right ones of the validation
set), superpixels and another baseline, so that only the order of magnitude can be compared:
"""
    lines = [[network, method, f"{one:.3f}", f"{other:.3f}"] for network, method, one, other in PUBLISHED]
    yield markdown(["network", "method", "insertion AUC", "deletion AUC"], lines)


def _cells(row: pd.Series, baseline: str) -> Iterator[str]:
    """The measures of one selector with one baseline, each with its standard error."""
    scales = {"flip_rate": (100, 0), "set_size": (1, 1), "insertion_auc": (1, 3), "deletion_auc": (1, 3)}
    for name, (factor, digits) in scales.items():
        value, error = (factor * row[f"{name}/{baseline}{end}"] for end in ("", "/standard_error"))
        yield f"{value:.{digits}f} ± {error:.{digits}f}"


def _searches(table: pd.DataFrame) -> Iterator[str]:
    yield "## Our search and the published one\n"
    means, lines = _wide(table), []
    for kind, name in SEARCH_NAMES.items():
        if (key := f"search_{kind}") in means.index:
            row = means.loc[key]
            over = [
                f"{row[f'{cost}_over_fast']:.1f}" if kind != "fast" else "1" for cost in ("forward_passes", "seconds")
            ]
            cells = [f"{row.photographs:.0f}", f"{100 * row.flip_rate:.0f}", f"{row.set_size:.1f}"]
            lines.append([name, *cells, f"{row.forward_passes:.0f}", f"{row.seconds:.2f}", *over])
    header = ["search", "photographs", "flips", "regions", "passes", "seconds", "passes over ours", "seconds over ours"]
    yield markdown(header, lines)
    speedup, fewer = means.loc["search_fast", SPEEDUP], means.loc["search_greedy", "fast_flip_rate_minus"]
    yield f"""
`{SPEEDUP}`: {speedup:.1f}, the last column of the last line (bar: at least {BAR},
{"met" if speedup >= BAR else "not met"}). Flips of ours minus those of greedy search with our objective:
{100 * fewer:+.0f} points (bar: no fewer, {"met" if fewer >= 0 else "not met"}).
Ratios compare the photographs that both have searched. The search as published
asks the network twice for each candidate (four terms), uses it as it is stored, and takes one photograph at a time; the
candidates of a step go through it together.
"""


def _wide(table: pd.DataFrame) -> pd.DataFrame:
    """A line for each selector, a column for each measure."""
    return table.pivot_table(index="selector", columns="measure", values="value", sort=False)
