"""The true minimum, by trying every subset in order of size: for small numbers of regions, to judge the search by."""

from itertools import combinations

import torch
from jaxtyping import Int64
from torch import Tensor

from everycause.explanation.scoring import Scorer
from everycause.explanation.search import Task

MOST_REGIONS = 16


def minimum_sizes(task: Task, exact: Scorer, largest: int) -> Int64[Tensor, "images"]:
    """The size of the smallest set whose removal flips the prediction; 0 where no set of up to `largest` regions does.

    Raises:
        ValueError: there are more than 16 regions.
    """
    regions = task.masking.regions
    if regions > MOST_REGIONS:
        raise ValueError(f"the exact minimum is searched for at most {MOST_REGIONS} regions, not {regions}")
    device = task.labels.device
    sizes = torch.zeros_like(task.labels)
    for size in range(1, largest + 1):
        open_ = (sizes == 0).nonzero()[:, 0]
        chosen = torch.tensor(list(combinations(range(regions), size)), device=device)
        subsets = torch.zeros(len(chosen), regions, dtype=torch.bool, device=device).scatter(1, chosen, True)
        for row in open_.tolist():
            valid = subsets[(subsets <= task.masking.exists[row]).all(dim=1)]
            logits = exact.logits(task.masking, torch.full((len(valid),), row, device=device), ~valid) if len(valid) else torch.zeros(0, 1)
            if len(valid) and bool((logits.argmax(dim=1) != task.labels[row]).any()):
                sizes[row] = size
    return sizes
