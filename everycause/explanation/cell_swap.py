"""Cell swaps: which cells of an image's feature map must be exchanged for those of another image.

The other image, the distractor, shows the runner-up class. Greedily, of all pairs of a cell of the image and a cell of
the distractor, the pair is exchanged that makes the runner-up most probable. Cells that go early tell the two classes
apart. The paper stops at the flip; here the exchange goes on until no cell is left, which ranks them all.

Where logits are linear in the average over cells, every cell adds its own share to each logit, and all exchanges are
tried exactly without another forward pass.

Paper: Goyal et al., Counterfactual Visual Explanations, ICML 2019 (arXiv 1904.07451), the exhaustive greedy search.
"""

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from everycause.data.images import normalized
from everycause.errors import UserError
from everycause.explanation.objectives import log_odds
from everycause.explanation.ranking import Ranking, Request, ranked_by_score, region_means
from everycause.networks import evaluating
from everycause.shapes import Float, Int64

if TYPE_CHECKING:
    from everycause.models import Classifier

CANDIDATES = 4
"""Images of the runner-up class among which the distractor is chosen."""
TRIED_AT_ONCE = 2**24
"""Logits held in memory while exchanges are tried."""


def cell_swap(request: Request) -> Ranking:
    """Regions by how early the cells of the explained layer that cover them are exchanged.

    Raises:
        UserError: the logits are not linear in the averaged channels, or a runner-up class has no image in the split.
    """
    task, classifier = request.task, request.classifier
    own = shares(classifier, task.masking.images, request.exact.batch_size)
    other = distractors(request)
    cells, classes = own.values.shape[1:]
    at_once = max(1, TRIED_AT_ONCE // (cells**2 * classes))
    rows = torch.arange(len(own.values), device=own.values.device).split(at_once)
    order = torch.cat([exchanged(own.values[one], other[one], own.bias, task.runner_up[one])[0] for one in rows])
    early = 1 - order.argsort(dim=1) / cells
    maps = early.unflatten(1, own.layout)[:, None]
    enlarged = interpolate(maps, size=task.masking.images.shape[-2:], mode="nearest-exact")[:, 0]
    return ranked_by_score(task, region_means(task.masking, enlarged), 1 + CANDIDATES)


class Shares(NamedTuple):
    """What each cell of the explained layer adds to the logits, which are the sum over cells and the bias."""

    values: Float[Tensor, "images cells classes"]
    bias: Float[Tensor, "classes"]
    layout: tuple[int, int]
    """Rows and columns of cells."""


@torch.no_grad()
def shares(classifier: "Classifier", images: Float[Tensor, "images 3 height width"], batch_size: int) -> Shares:
    """The cells' shares in the logits of normalized images; one forward pass each.

    Raises:
        UserError: the logits are not linear in the averaged channels.
    """
    try:
        weight, bias = classifier.head()
    except UserError as error:
        raise UserError(f"the selector 'cell_swap' reads the last layer as filters do: {error}") from error
    with evaluating(classifier):
        maps = torch.cat(
            [classifier.as_maps(classifier.layer_output(some).output) for some in images.split(batch_size)]
        )
    layout = (maps.shape[2], maps.shape[3])
    values = torch.einsum("bkn,ck->bnc", maps.flatten(2), weight) / (layout[0] * layout[1])
    return Shares(values, bias, layout)


def distractors(request: Request) -> Float[Tensor, "images cells classes"]:
    """The shares of each image's distractor: of the next images of its runner-up class, the surest of it.

    Raises:
        UserError: a runner-up class has no image in the split.
    """
    split, labels, wanted = request.split, request.split.labels, request.task.runner_up.cpu()
    chosen = []
    for index, target in zip(request.index.tolist(), wanted.tolist(), strict=True):
        members = (labels == target).nonzero()[:, 0]
        if len(members) == 0:
            raise UserError(
                f"the selector 'cell_swap' needs an image of the class '{split.class_names[target]}', and the split "
                f"'{split.name}' has none: name another selector"
            )
        first = int((members < index).sum())
        chosen.append(members[(first + torch.arange(CANDIDATES)) % len(members)])
    candidates, found = torch.stack(chosen), []
    at_once = max(1, request.exact.batch_size // CANDIDATES)
    for rows, targets in zip(candidates.split(at_once), request.task.runner_up.split(at_once), strict=True):
        images = normalized(split.read(rows.flatten().numpy()), request.classifier.statistics, targets.device)
        values, bias, _ = shares(request.classifier, images, len(images))
        sure = log_odds(values.sum(dim=1) + bias, targets.repeat_interleave(CANDIDATES)).view(-1, CANDIDATES)
        everyone = torch.arange(len(rows), device=targets.device)
        found.append(values.unflatten(0, (-1, CANDIDATES))[everyone, sure.argmax(dim=1)])
    return torch.cat(found)


def exchanged(
    own: Float[Tensor, "images cells classes"],
    other: Float[Tensor, "images cells classes"],
    bias: Float[Tensor, "classes"],
    targets: Int64[Tensor, "images"],
) -> tuple[Int64[Tensor, "images cells"], Int64[Tensor, "images cells"]]:
    """The cells in the order in which they are exchanged, and the cell of the distractor that replaces each.

    Every cell of either image is used once.
    """
    images, cells, _ = own.shape
    everyone, logits = torch.arange(images, device=own.device), own.sum(dim=1) + bias
    used = torch.zeros(images, cells, cells, dtype=torch.bool, device=own.device)
    steps = []
    for _ in range(cells):
        trial = logits[:, None, None] + other[:, None] - own[:, :, None]
        value = log_odds(trial.flatten(0, 2), targets.repeat_interleave(cells**2)).view(images, cells, cells)
        pair = value.masked_fill(used, -torch.inf).flatten(1).argmax(dim=1)
        cell, partner = pair // cells, pair % cells
        logits = trial[everyone, cell, partner]
        used[everyone, cell], used[everyone, :, partner] = True, True
        steps.append(torch.stack([cell, partner]))
    order, partners = torch.stack(steps, dim=2)
    return order, partners
