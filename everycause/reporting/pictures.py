"""Pictures of images: the gallery of counterfactuals and the contact sheet of all splits."""

import numpy as np
import torch
from jaxtyping import UInt8
from matplotlib.figure import Figure

from everycause.data.batches import Statistics
from everycause.data.dataset import DataParams
from everycause.data.shifts import views
from everycause.data.split import Split
from everycause.explanation.masks import Masks
from everycause.reporting import figures
from everycause.training.fill import FillParams, fill_of

COUNT = 10
"""Images side by side."""


def counterfactual_gallery(train: Split, masks: Masks, statistics: Statistics, fill: FillParams) -> Figure:
    """The first flipped images of different classes with their masks and one filling."""
    flipped = masks.flipped.nonzero()[:, 0]
    labels = train.labels[masks.index[flipped]].numpy()
    _, first = np.unique(labels, return_index=True)
    rows = flipped[torch.as_tensor(np.sort(first)[:COUNT])]
    index = masks.index[rows]
    images, own = train.read(index.numpy()), train.labels[index]
    shown = masks.rows(rows)
    shaded = shown.pixels(shown.removed)
    background = fill_of(masks, train, statistics, fill).draw(images, shaded, own, torch.Generator().manual_seed(0))
    filled = torch.where(shaded[:, None], background, images)
    titles = [
        f"{train.class_names[label].removeprefix('word-')} → {train.class_names[other].removeprefix('word-')}\np {before:.2f} → {after:.2f}"
        for label, other, before, after in zip(
            own.tolist(), masks.runner_up[rows].tolist(), masks.before[rows, 0].tolist(), masks.after[rows, 0].tolist(), strict=True
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
