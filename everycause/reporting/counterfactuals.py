"""Counterfactual images in a report: galleries drawn from tensors, and a table of what they were judged by."""

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from everycause.data.images import Images
from everycause.shapes import UInt8

COLUMNS = 8
"""Images in a line of a sheet."""
GAIN = 2
"""Factor by which differences are shown, about middle gray."""


def sheet(images: Images) -> Figure:
    """Images side by side, eight in a line."""
    lines = -(-len(images) // COLUMNS)
    figure, axes = plt.subplots(lines, COLUMNS, figsize=(COLUMNS, lines), squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for axis, image in zip(axes.flat, images, strict=False):
        axis.imshow(image.permute(1, 2, 0).numpy(), interpolation="nearest")
    figure.subplots_adjust(wspace=0.05, hspace=0.05)
    return figure


def gallery(originals: Images, changed: dict[str, Images], titles: list[str]) -> Figure:
    """The originals, and below them the counterfactual images and differences of each method.

    Args:
        originals: A column each.
        changed: Method → its counterfactual images.
        titles: Above each column.
    """
    lines = {"original": originals.numpy()}
    for method, images in changed.items():
        lines[method] = images.numpy()
        lines[f"{method}: difference × {GAIN}"] = _difference(originals.numpy(), images.numpy())
    figure, axes = plt.subplots(
        len(lines), len(originals), figsize=(1.2 * len(originals), 1.25 * len(lines)), squeeze=False
    )
    for line, (name, images) in zip(axes, lines.items(), strict=True):
        for axis, image in zip(line, images, strict=True):
            axis.imshow(image.transpose(1, 2, 0), interpolation="nearest")
            axis.set(xticks=[], yticks=[])
        line[0].set_ylabel(name, fontsize=6, rotation=0, ha="right", va="center")
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(title, fontsize=6)
    figure.subplots_adjust(wspace=0.04, hspace=0.04)
    return figure


def _difference(
    before: UInt8[np.ndarray, "images 3 height width"], after: UInt8[np.ndarray, "images 3 height width"]
) -> UInt8[np.ndarray, "images 3 height width"]:
    """Changes of colors about middle gray."""
    change = after.astype(int) - before.astype(int)
    return (128 + GAIN * change).clip(0, 255).astype(np.uint8)
