"""Pictures of images and of filters, drawn from tensors that the stages stored."""

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn.functional import interpolate

from everycause.reporting.results import Pictures
from everycause.reporting.tables import class_name
from everycause.shapes import Float, UInt8

MOST_NAMES = 40
"""Classes of a heat map. Of more classes, the 20 that share least and the 20 that share most are shown."""
COLUMNS = 10
"""Images side by side: with more they are too small on a printed page."""
LONGEST = 24
"""Characters of a name before it is cut."""
TINT = np.array([230, 20, 90])
"""Color of removed regions."""


def shortened(name: str) -> str:
    """A class name, cut where it is too long to stand above a picture."""
    name = class_name(name)
    return name if len(name) <= LONGEST else name[: LONGEST - 1] + "…"


def gallery(pictures: Pictures) -> Figure:
    """Original, removed regions and counterfactual image, column by column; the page shows those of all classes."""
    images, removed, filled = (pictures.tensors[name].numpy() for name in ("images", "removed", "counterfactuals"))
    titles, count = pictures.description["titles"], min(COLUMNS, len(images))
    figure, axes = plt.subplots(3, count, figsize=(1.45 * count, 4.6), squeeze=False)
    for column in range(count):
        picture, after = images[column].transpose(1, 2, 0), filled[column].transpose(1, 2, 0)
        tinted = np.where(removed[column][..., None], 0.25 * picture + 0.75 * TINT, picture).astype(np.uint8)
        for axis, shown in zip(axes[:, column], (picture, tinted, after), strict=True):
            _shown(axis, shown)
        axes[0, column].set_title(titles[column], fontsize=7)
    for axis, label in zip(axes[:, 0], ("image", "removed", "counterfactual"), strict=True):
        axis.set_ylabel(label, fontsize=8)
    figure.subplots_adjust(wspace=0.05, hspace=0.05)
    return figure


def contact_sheet(pictures: Pictures) -> Figure:
    """The first images of every split, a line per split."""
    names = pictures.description["names"]
    lines = [pictures.tensors[key].permute(0, 2, 3, 1) for key in sorted(pictures.tensors)]
    figure, axes = plt.subplots(len(lines), 1, figsize=(12, 0.68 * len(lines)), squeeze=False)
    for axis, name, line in zip(axes[:, 0], names, lines, strict=True):
        _shown(axis, np.concatenate(list(line.numpy()), axis=1))
        axis.set_ylabel(name, rotation=0, ha="right", va="center", fontsize=9)
    figure.subplots_adjust(hspace=0.04)
    return figure


def heat_map(pictures: Pictures, class_names: list[str]) -> Figure:
    """How often each class needs each filter, and how far classes share their filters."""
    shares, shared = pictures.tensors["shares"].numpy(), pictures.tensors["overlap"].numpy()
    chosen = legible_classes(shared)
    half, note = MOST_NAMES // 2, ""
    if len(chosen) < len(shared):
        note = f" (of {len(shared)} classes the {half} that share least and the {half} that share most)"
    shares, shared = shares[chosen], shared[np.ix_(chosen, chosen)]
    order = np.lexsort((-shares.max(axis=0), shares.argmax(axis=0)))
    height = max(4.6, 0.17 * len(chosen))
    figure, (left, right) = plt.subplots(1, 2, figsize=(14, height), width_ratios=(2.2, 1))
    picture = left.imshow(shares[:, order], aspect="auto", cmap="magma", vmin=0, vmax=1, interpolation="nearest")
    figure.colorbar(picture, ax=left, label="share of the class's images", fraction=0.03)
    left.set(title=f"How often a class needs a filter{note}", xlabel="filters, by the class that needs them most")
    left.set_xticks([])
    matrix = right.imshow(shared, cmap="viridis", vmin=0, vmax=1, interpolation="nearest")
    figure.colorbar(matrix, ax=right, label="shared / all filters", fraction=0.046)
    right.set(title="Overlap of classes", xlabel="class, in the order on the left", yticks=[])
    left.set_yticks(range(len(chosen)), [shortened(class_names[number]) for number in chosen], fontsize=7)
    return figure


def legible_classes(overlap: Float[np.ndarray, "classes classes"]) -> np.ndarray:
    """The numbers of the classes that a heat map shows: all, or those with the smallest and largest mean overlap."""
    if len(overlap) <= MOST_NAMES:
        return np.arange(len(overlap))
    order = np.argsort(overlap.mean(axis=0), kind="stable")
    return np.concatenate([order[: MOST_NAMES // 2], order[-MOST_NAMES // 2 :]])


def filters_on_images(pictures: Pictures) -> Figure:
    """Images of some classes under the class activation map of all their filters, and their top filters one by one."""
    images, maps, titles = pictures.tensors["images"], pictures.tensors["maps"], pictures.description["titles"]
    maps = interpolate(maps, size=images.shape[-2:], mode="bilinear", align_corners=False)
    count, columns = maps.shape[0], maps.shape[1] + 1
    figure, axes = plt.subplots(count, columns, figsize=(1.35 * columns, 1.5 * count), squeeze=False)
    for number in range(count):
        _shown(axes[number, 0], images[number].permute(1, 2, 0).numpy())
        for axis, over in zip(axes[number, 1:], maps[number], strict=True):
            _overlaid(axis, images[number], over)
        if number == 0 or titles[number] != titles[number - 1]:
            for axis, title in zip(axes[number], titles[number], strict=True):
                axis.set_title(shortened(title), fontsize=8)
    figure.subplots_adjust(wspace=0.04, hspace=0.28)
    return figure


def _shown(axis: Axes, picture: UInt8[np.ndarray, "height width 3"]) -> None:
    axis.imshow(picture, interpolation="nearest")
    axis.set(xticks=[], yticks=[])


def _overlaid(axis: Axes, image: UInt8[Tensor, "3 height width"], over: Float[Tensor, "height width"]) -> None:
    """An image in gray under a map."""
    axis.set(xticks=[], yticks=[])
    axis.imshow(image.float().mean(dim=0).numpy(), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    strength = (over.clamp_min(0) / torch.clamp_min(over.max(), 1e-6)).numpy()
    axis.imshow(strength, cmap="inferno", alpha=0.75 * strength, vmin=0, vmax=1, interpolation="nearest")
