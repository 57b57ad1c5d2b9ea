"""Known spurious attributes of training images: what is in a picture beside its class, and should not matter."""

import torch
from torch import Tensor

from everycause.data.sources import DataParams, SplitName, groups, has_groups, renderer
from everycause.errors import UserError
from everycause.shapes import Int64

SCENE, PLACE = "scene", "place"


def known_attributes(params: DataParams) -> list[str]:
    """The names of the attributes that a data source knows."""
    if params.code is not None:
        return [SCENE]
    return [PLACE] if has_groups(params) else []


def attribute(params: DataParams, split: SplitName, name: str) -> Int64[Tensor, "images"]:
    """The value of an attribute in each image of a split, from 0 on.

    `scene`, of Codebirds, is the kind of the scene. `place`, of data sets of photographs that name groups, is the place
    within the group: 0 for land and 1 for water in Waterbirds.

    Raises:
        UserError: the data source does not know it.
    """
    known = known_attributes(params)
    if name not in known:
        told = f"it knows {', '.join(known)}" if known else "it knows none"
        raise UserError(
            f"counterfactuals.spurious_attribute is '{name}', which data.source '{params.source}' does not know "
            f"({told}): name one that it knows, or null"
        )
    if name == SCENE:
        return torch.from_numpy(renderer(params, 1).factors(split).scene).long()
    return groups(params, split) % 2
