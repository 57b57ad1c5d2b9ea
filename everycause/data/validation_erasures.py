"""Erasures of validation images: the one shifted split that selection may use, under its own name.

They are rendered from validation seeds and validation scenes, so no test image is touched. Only a sweep whose rule is
"validation completeness" imports this module (a test sees to it), and whatever it selects says so in its header.
"""

from collections.abc import Iterator
from dataclasses import replace

import torch

from everycause.data.codebirds import Codebirds
from everycause.data.dataset import DataParams
from everycause.data.erasures import erased
from everycause.data.split import Images


def validation_erasures(params: DataParams, threads: int) -> Iterator[tuple[tuple[int, ...], Images, torch.Tensor]]:
    """Every set of absent parts with its images and their labels; scenes are independent of the class.

    Raises:
        ValueError: the data are not rendered, so their parts are not known.
    """
    if params.source != "codebirds":
        raise ValueError("the selection rule 'validation completeness' needs data.source codebirds: set tuning.rule to 'validation accuracy'")
    birds = Codebirds(params.codebirds, threads)
    factors = birds.factors("validation")
    factors = replace(factors, scene=birds.free_scene(factors))
    for size in range(birds.code.length + 1):
        for parts in birds.code.subsets(size):
            yield parts, torch.from_numpy(birds.images(erased(factors, parts))), torch.from_numpy(factors.label)
