"""Rounds: masks are searched again on the model as it learns, until no cause is missing. The project's own method.

One round of masks shows what the model relies on now; trained against that alone it may move on to the next cause. So each
image has a pool of sets. Before each round the region search runs on the current model and its sets join the pool. A
counterfactual of the image loses a random set of its pool, or none; what lies away from every set of the pool is replaced
as well, so that the scene is nobody's way out. The searches end when the number of regions that a flip takes no longer
grows; training goes on to the same number of steps and images as every other row.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from pydantic import Field

from everycause.explanation.masks import MaskParams, Masks, searched, select_images
from everycause.params import Section
from everycause.training.background import background_of
from everycause.training.counterfactuals import Pool, Removals
from everycause.training.fit import Epoch, Goal, Training
from everycause.training.rows import Recipe, Upstream, with_flips

ROUND = "round-{}.safetensors"
CHECKPOINT = "checkpoint.pt"


class RoundsParams(Section):
    """How often the search runs again."""

    rounds: int = Field(ge=1)
    """The most rounds, R; the epochs of retraining are shared out among them."""
    images: int = Field(ge=1)
    """Images that are searched before each later round, evenly over the classes; the first takes the masks of the base."""
    growth: float = Field(ge=0)
    """The searches end when the mean number of regions at the flip has grown by less than this share since the last one."""


class Round(NamedTuple):
    """What one round came to."""

    number: int
    """From 1."""
    masks: Masks | None
    """The masks that joined the pool before it; None once the searches have ended."""
    epochs: list[Epoch]


def rounds(
    training: Training, upstream: Upstream, recipe: Recipe, params: RoundsParams, before: list[Masks | None]
) -> Iterator[Round]:
    """Search and train in turn; the classifier in `training` becomes the result.

    Args:
        training: A fresh training of the base, or one that has taken up the state after the rounds in `before`.
        upstream: The base, with its masks, and the training images.
        recipe: The params of masks, background and loss.
        params: How many rounds.
        before: The masks of the rounds that are finished already.

    Raises:
        UserError: no searched image of the base changes its prediction, or the loss is not finite.
    """
    found: list[Masks | None] = list(before)
    background = background_of(upstream.masks, upstream.train, upstream.base.statistics, recipe.background)
    ends = [round(number * training.params.epochs / params.rounds) for number in range(params.rounds + 1)]
    for number in range(len(before) + 1, params.rounds + 1):
        found.append(_next_masks(training, upstream, recipe.masks, params, found))
        pool = Pool(
            {}, upstream.masks.partition[:1] if len(upstream.masks.partition) == 1 else upstream.masks.partition[:0], {}
        )
        for masks in found:
            pool = pool if masks is None else pool.joined(masks)
        goal = Goal(
            recipe.weights, Removals(pool, background, recipe.background.augment_rate, scene=True, none=True), None
        )
        yield Round(number, found[-1], list(training.epochs(goal, ends[number] - ends[number - 1])))


def _next_masks(
    training: Training, upstream: Upstream, masks: MaskParams, params: RoundsParams, found: list[Masks | None]
) -> Masks | None:
    """The masks of the model as it is now, while the flips still take more and more regions."""
    if not found:
        return with_flips(upstream.masks)
    if found[-1] is None or (
        len(found) > 1
        and found[-2] is not None
        and size_at_flip(found[-1]) < (1 + params.growth) * size_at_flip(found[-2])
    ):
        return None
    selection = select_images(training.classifier, upstream.train, masks.confidence, params.images)
    new = replace(
        Masks.joined(list(searched(training.classifier, upstream.train, selection.index, masks))),
        selection_counts=selection.counts,
    )
    return new if bool(new.flipped.any()) else None


def size_at_flip(masks: Masks) -> float:
    """The mean number of regions that a flip takes; images that never flip count with one more than the largest set."""
    return float(torch.where(masks.flipped, masks.sizes, masks.order.shape[1] + 1).double().mean())


class Progress(NamedTuple):
    """What a folder holds of rounds that are finished."""

    masks: list[Masks | None]
    """Of each round."""
    measures: list[tuple[dict[str, float], int]]
    """Everything that was recorded, with its step."""


def keep(folder: Path, training: Training, kept: Progress, model: str, data: str) -> None:
    """Write the state after a round, so that a killed run can go on from it."""
    number, masks = len(kept.masks), kept.masks[-1]
    if masks is not None:
        masks.save(folder / ROUND.format(number), model, data)
    partial = folder / (CHECKPOINT + ".writing")
    torch.save(
        {
            "searched": [masks is not None for masks in kept.masks],
            "measures": kept.measures,
            "training": training.state(),
        },
        partial,
    )
    partial.rename(folder / CHECKPOINT)


def take_up(folder: Path, training: Training) -> Progress:
    """The finished rounds in a folder, none in a fresh one; the training goes on after the last of them."""
    if not (folder / CHECKPOINT).is_file():
        return Progress([], [])
    state = torch.load(folder / CHECKPOINT, weights_only=True)
    training.take_up(state["training"])
    masks = [
        Masks.read(folder / ROUND.format(number)) if searched_ else None
        for number, searched_ in enumerate(state["searched"], 1)
    ]
    return Progress(masks, [(measures, step) for measures, step in state["measures"]])
