"""The filters of every class, drawn and tabulated: what they are worth, where they look, who shares them, whether the terms move."""

from typing import get_args

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn.functional import interpolate

from codebirds.codes import Code
from everycause.data.shifts import views
from everycause.data.sources import DataParams
from everycause.data.split import Split, Statistics, normalized
from everycause.explanation.filters import FilterBank
from everycause.explanation.heads import Variant
from everycause.explanation.masks import Masks
from everycause.hooks import evaluating
from everycause.models import Classifier
from everycause.reporting import figures
from everycause.reporting.figures import color
from everycause.reporting.results import REFERENCE, Results
from everycause.reporting.tables import markdown
from everycause.shapes import Bool, Float, Int64, UInt8
from everycause.training.background import BackgroundParams, background_of

# MERGED DOC: """Pictures of images: the gallery of counterfactuals and the contact sheet of all splits."""


COUNT = 10
"""Images side by side."""


def counterfactual_gallery(train: Split, masks: Masks, statistics: Statistics, params: BackgroundParams) -> Figure:
    """The first flipped images of different classes with their masks and one filling."""
    flipped = masks.flipped.nonzero()[:, 0]
    labels = train.labels[masks.index[flipped]].numpy()
    _, first = np.unique(labels, return_index=True)
    rows = flipped[torch.as_tensor(np.sort(first)[:COUNT])]
    index = masks.index[rows]
    images, own = train.read(index.numpy()), train.labels[index]
    shown = masks.rows(rows)
    shaded = shown.pixels(shown.removed)
    background = background_of(masks, train, statistics, params).draw(
        images, shaded, own, torch.Generator().manual_seed(0)
    )
    filled = torch.where(shaded[:, None], background, images)
    titles = [
        f"{train.class_names[label].removeprefix('word-')} → {train.class_names[other].removeprefix('word-')}\np {before:.2f} → {after:.2f}"
        for label, other, before, after in zip(
            own.tolist(),
            masks.runner_up[rows].tolist(),
            masks.before[rows, 0].tolist(),
            masks.after[rows, 0].tolist(),
            strict=True,
        )
    ]
    return figures.gallery(images.numpy(), shaded.numpy(), filled.numpy(), titles)


def contact_sheet(train: Split, data: DataParams, corruptions: list[str], threads: int) -> Figure:
    """The same test images in every split, a line each; of the erasures one set per size, of the corruptions severity 3."""
    lines: dict[str, UInt8[np.ndarray, "n 3 h w"]] = {"train": train.read(np.arange(16)).numpy()}
    sizes: set[int] = set()
    for view in views(data, corruptions, [3], threads):
        family, _, member = view.name.partition("/")
        if family == "erasures":
            size = member.count("-") + 1
            if size in sizes:
                continue
            sizes.add(size)
            member = f"{size} part{'s' if size > 1 else ''}"
        name = family.replace("_", " ") + (f": {member.removesuffix('/3').replace('_', ' ')}" if member else "")
        lines[name] = view.split.read(np.arange(min(16, len(view.split)))).numpy()
    return figures.contact_sheet(lines)


CLASSES, IMAGES, TOP = 3, 2, 4
"""Of the picture of top filters: classes, images of each, filters of each."""
NAMED = 3
"""Winners and losers that the table names."""
MEASURES = {"filters_per_image": "filters", "keep_rate": "prediction kept", "random/keep_rate": "… on random ones", "disable_flip_rate": "prediction lost without", "random/disable_flip_rate": "… without random ones"}  # fmt: skip


def generators_table(summary: dict[str, float]) -> str:
    """One line per generator of local filters, each beside random sets of equal size."""
    names = [
        name
        for name in (*get_args(Variant), "exact_sufficient", "exact_necessary")
        if f"{name}/filters_per_image" in summary
    ]
    lines = [
        [
            f"`{name}`",
            *(f"{summary[f'{name}/{measure}']:.3g}" if f"{name}/{measure}" in summary else "" for measure in MEASURES),
        ]
        for name in names
    ]
    return markdown(["generator", *MEASURES.values()], lines)


def overlap(filters: Bool[Tensor, "classes filters"]) -> Float[np.ndarray, "classes classes"]:
    """Shared filters over all filters of two classes (Jaccard)."""
    sets = filters.double()
    both, sizes = sets @ sets.T, sets.sum(dim=1)
    return (both / (sizes[:, None] + sizes - both).clamp_min(1)).numpy()


def overlap_by_shared_parts(shared: Float[np.ndarray, "classes classes"], code: Code) -> dict[int, float]:
    """Mean overlap of the pairs of classes with as many parts in common: do filters follow the causes?"""
    upper = np.triu_indices(len(shared), 1)
    common = (code.words[:, None] == code.words[None]).sum(axis=2)[upper]
    return {int(count): float(shared[upper][common == count].mean()) for count in np.unique(common)}


def heat_map(bank: FilterBank, class_names: tuple[str, ...], frequency_threshold: float) -> Figure:
    """How often each class needs each filter, and how far classes share their filters."""
    shares = (bank.histogram / bank.support[:, None]).numpy()
    order = np.lexsort((-shares.max(axis=0), shares.argmax(axis=0)))
    figure, (left, right) = plt.subplots(1, 2, figsize=(14, 4.6), width_ratios=(2.2, 1))
    picture = left.imshow(shares[:, order], aspect="auto", cmap="magma", vmin=0, vmax=1, interpolation="nearest")
    figure.colorbar(picture, ax=left, label="share of the class's images", fraction=0.03)
    left.set(title="How often a class needs a filter", xlabel="filter, by the class that needs it most", ylabel="class")
    matrix = right.imshow(
        overlap(bank.global_filters(frequency_threshold)), cmap="viridis", vmin=0, vmax=1, interpolation="nearest"
    )
    figure.colorbar(matrix, ax=right, label="shared / all filters", fraction=0.046)
    right.set(title="Overlap of classes", xlabel="class", ylabel="class")
    if len(class_names) <= 24:
        left.set_yticks(range(len(class_names)), [name.removeprefix("word-") for name in class_names], fontsize=7)
    return figure


def top_filters(bank: FilterBank, label: int, count: int) -> Int64[Tensor, "filters"]:
    """The filters that most of a class's images need; ties go to the larger activation."""
    order = bank.magnitude[label].argsort(descending=True, stable=True)
    return order[bank.histogram[label][order].argsort(descending=True, stable=True)][:count]


@torch.no_grad()
def maps_of(classifier: Classifier, images: Tensor) -> Float[Tensor, "images filters height width"]:
    """The explained layer's maps, enlarged to the size of the images."""
    with evaluating(classifier):
        maps = classifier.as_maps(
            classifier.layer_output(normalized(images, classifier.statistics, classifier.device)).output
        ).cpu()
    return interpolate(maps, size=images.shape[-2:], mode="bilinear", align_corners=False)


def filters_on_images(
    classifier: Classifier, bank: FilterBank, split: Split, labels: list[int], frequency_threshold: float
) -> Figure:
    """Images of some classes under the class activation map of all their global filters, and of their top filters one by one."""
    weight = classifier.head()[0].cpu()
    filters = bank.global_filters(frequency_threshold)
    figure, axes = plt.subplots(
        len(labels) * IMAGES, TOP + 2, figsize=(1.35 * (TOP + 2), 1.5 * len(labels) * IMAGES), squeeze=False
    )
    for number, label in enumerate(labels):
        own, best = (split.labels == label).nonzero()[:IMAGES, 0], top_filters(bank, label, TOP)
        images = split.read(own.numpy())
        maps = maps_of(classifier, images)
        together = torch.einsum("ikhw,k->ihw", maps, weight[label] * filters[label]).relu()
        for row, image in enumerate(images, IMAGES * number):
            shown = [None, together[row % IMAGES], *maps[row % IMAGES, best]]
            titles = [
                split.class_names[label].removeprefix("word-"),
                "its filters",
                *(f"{k}: {bank.histogram[label, k] / bank.support[label]:.0%}" for k in best.tolist()),
            ]
            for axis, over, title in zip(axes[row], shown, titles, strict=True):
                _overlaid(axis, image, over)
                if row % IMAGES == 0:
                    axis.set_title(title, fontsize=8)
    figure.subplots_adjust(wspace=0.04, hspace=0.28)
    return figure


def _overlaid(axis: plt.Axes, image: Tensor, over: Tensor | None) -> None:
    """An image, gray under a map where there is one."""
    picture = image.permute(1, 2, 0).numpy()
    axis.set(xticks=[], yticks=[])
    if over is None:
        axis.imshow(picture, interpolation="nearest")
        return
    axis.imshow(picture.mean(axis=2), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    strength = (over.clamp_min(0) / over.max().clamp_min(1e-6)).numpy()
    axis.imshow(strength, cmap="inferno", alpha=0.75 * strength, vmin=0, vmax=1, interpolation="nearest")


def terms_figure(histories: dict[str, list[dict[str, float]]]) -> Figure | None:
    """The filter terms and the number of active filters, epoch by epoch, of every row that watches them: a term that does not move shows."""
    watched = {row: epochs for row, epochs in histories.items() if epochs and "train/mc" in epochs[0]}
    if not watched:
        return None
    panels = {
        "train/mc": "activity on the class's filters",
        "train/nonmc": "activity beside them",
        "train/active": "active filters per image",
    }
    figure, axes = plt.subplots(1, 3, figsize=(14, 3.4))
    for axis, (name, title) in zip(axes, panels.items(), strict=True):
        for row, epochs in watched.items():
            axis.plot(
                [one["step"] for one in epochs],
                [one[name] for one in epochs],
                marker="o",
                markersize=3,
                color=color(row),
                label=row,
            )
        axis.set(title=title, xlabel="epoch")
    axes[-1].legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1.0))
    return figure


def terms_table(histories: dict[str, list[dict[str, float]]]) -> str:
    """Each term in the first and in the last epoch."""
    names = {"train/mc": "on the filters", "train/nonmc": "beside them", "train/active": "active filters"}
    lines = [
        [f"`{row}`", *(f"{epochs[0][name]:.4g} → {epochs[-1][name]:.4g}" for name in names)]
        for row, epochs in histories.items()
        if epochs and "train/mc" in epochs[0]
    ]
    return markdown(["row", *names.values()], lines) if lines else ""


def recalls(results: Results, row: str, family: str) -> Float[np.ndarray, "classes"]:
    """The share of each class's images that is recognized, averaged over a family's views and the seeds."""
    found = []
    for seed in results.seeds:
        predictions = results.predictions[row, seed]
        views = predictions.family(family)
        labels, correct = (
            torch.cat([predictions.labels[view] for view in views]),
            torch.cat([predictions.correct(view) for view in views]).double(),
        )
        count = predictions.logits[views[0]].shape[1]
        found.append(
            (
                torch.zeros(count, dtype=torch.float64).index_add_(0, labels, correct)
                / torch.bincount(labels, minlength=count)
            ).numpy()
        )
    return np.mean(found, axis=0)


def winners_table(
    results: Results, class_names: tuple[str, ...], families: tuple[str, ...] = ("test", "corruptions")
) -> str:
    """Per-class recall against the reference: how many classes won and lost, and which most."""
    lines = []
    for row in results.rows:
        for family in families:
            if row in ("base", REFERENCE) or REFERENCE not in results.rows or not results.has(f"accuracy/{family}"):
                continue
            change = 100 * (recalls(results, row, family) - recalls(results, REFERENCE, family))
            order = np.argsort(-change, kind="stable")
            won = [f"{class_names[c].removeprefix('word-')} {change[c]:+.1f}" for c in order[:NAMED] if change[c] > 0]
            lost = [
                f"{class_names[c].removeprefix('word-')} {change[c]:+.1f}" for c in order[::-1][:NAMED] if change[c] < 0
            ]
            lines.append(
                [
                    f"`{row}`",
                    family,
                    str(int((change > 0).sum())),
                    ", ".join(won),
                    str(int((change < 0).sum())),
                    ", ".join(lost),
                ]
            )
    return markdown(["row", "split", "classes won", "most", "classes lost", "most"], lines) if lines else ""
