"""Do the masks hit what is known to matter? Only Codebirds can tell."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from everycause.data.codebirds import Codebirds
from everycause.data.dataset import DataParams
from everycause.explanation.masks import Masks
from everycause.explanation.regions import random_sets

DESTROYED = 0.5
"""A part counts as destroyed when at least this share of its visible pixels is removed."""


def against_truth(masks: Masks, params: DataParams, threads: int, seed: int) -> dict[str, float]:
    """Measures of the flipped sets against the parts of the training birds, beside random sets of equal size.

    Nothing for a folder of photos, whose causes nobody knows. The flip distance is the number of parts destroyed by the
    set that flips the prediction; a classifier that has learned every cause needs at least the code's distance.
    """
    if params.source != "codebirds" or not bool(masks.flipped.any()):
        return {}
    birds = Codebirds(params.codebirds, threads)
    factors = birds.factors("train", masks.index[masks.flipped].numpy())
    parts = torch.from_numpy(birds.part_masks(factors))
    sets = masks.removed[masks.flipped]
    result = {"code_distance": float(birds.code.distance)}
    for name, chosen in (("", sets), ("random/", random_sets(sets.sum(dim=1), sets.shape[1], seed))):
        measures = part_measures(chosen[:, masks.partition], parts)
        result |= {f"{name}{key}": value for key, value in measures.items()}
    first = masks.order[masks.flipped, :1]
    hit = (first[:, :, None] == masks.partition.flatten()).view(len(first), *masks.partition.shape) & parts.any(dim=1)
    result["pointing_game"] = float(hit.flatten(1).any(dim=1).double().mean())
    return result


def part_measures(masks: Bool[Tensor, "images height width"], parts: Bool[Tensor, "images parts height width"]) -> dict[str, float]:
    """Share of the mask that lies on parts, share of the parts that it covers, and the number of parts it destroys."""
    covered = covered_share(masks, parts)
    anywhere = parts.any(dim=1)
    hit = (masks & anywhere).sum(dim=(1, 2)).double()
    on_parts, recall = hit / masks.sum(dim=(1, 2)), hit / anywhere.sum(dim=(1, 2)).clamp_min(1)
    return {
        "share_on_parts": float(on_parts.mean()),
        "part_recall": float(recall.mean()),
        "flip_distance": float((covered >= DESTROYED).sum(dim=1).double().mean()),
    }


def covered_share(masks: Bool[Tensor, "images height width"], parts: Bool[Tensor, "images parts height width"]) -> Float[Tensor, "images parts"]:
    """The removed share of each part's visible pixels; 0 for a part that is not visible."""
    return (masks[:, None] & parts).sum(dim=(2, 3)) / parts.sum(dim=(2, 3)).clamp_min(1)
