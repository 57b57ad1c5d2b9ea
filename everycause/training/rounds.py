"""Rounds: masks are searched again on the model as it learns, until no cause is missing. This project's own method.

One round of masks shows which regions the model uses now. Trained without those alone it may move on to the next cause.
So each image has a pool of sets. Before each round the region search runs on the current model, and the sets that it
finds join the pool. A counterfactual image loses a random set of its pool, or none; pixels away from every set of the
pool are replaced as well, so that the model cannot use the scene instead. The searches end when flips no longer take
more regions than before. Training goes on to the same number of steps and images as in every other row.
"""

import io
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from pydantic import Field

from everycause import ranks
from everycause.artifacts import is_whole, part
from everycause.explanation.masks import MaskParams, Masks, searched, select_images
from everycause.models import Classifier
from everycause.params import Section
from everycause.training.counterfactuals import Pool, Removals, Upstream
from everycause.training.fit import Epoch, Goal, Training

ROUND = "round-{}.safetensors"
"""File of the masks that joined the pool before a round, by the number of the round."""
CHECKPOINT = "checkpoint.pt"
"""File of the state after the last finished round."""
Observe = Callable[[int, Classifier, Masks | None], dict[str, float]]
"""Measures the model after a round: number of the round (0: the base), model, masks that joined the pool before it."""


class RoundsParams(Section):
    """How often the search runs again."""

    rounds: int = Field(ge=1, le=1000)
    """The most rounds, R; the epochs of retraining are divided among them."""
    images: int = Field(ge=1, le=100_000_000)
    """Images searched before each round, evenly over the classes; the first round uses the masks of the base."""
    growth: float = Field(ge=0, le=1000)
    """The searches end when the mean number of regions at the flip has grown by less than this share since the last
    search."""


class Progress(NamedTuple):
    """The finished rounds."""

    masks: list[Masks | None]
    """The masks of each round; None once the searches have ended."""
    epochs: list[Epoch]
    """Everything that was recorded."""


class Rounds:
    """A training that goes on in rounds of search and training; the model in `training` becomes the result."""

    def __init__(
        self, training: Training, goal: Goal, upstream: Upstream, search: MaskParams, params: RoundsParams
    ) -> None:
        """Prepare the rounds.

        Args:
            training: A fresh training of the base.
            goal: What to minimize; its counterfactual images lose the sets of the first round.
            upstream: The base, with its masks.
            search: How to search.
            params: How many rounds.
        """
        assert isinstance(goal.counterfactuals, Removals)
        self.training, self.goal, self.upstream, self.search, self.params = training, goal, upstream, search, params
        self._removals = replace(goal.counterfactuals, none=True)
        self._found: list[Masks | None] = []

    def epochs(self, folder: Path | None = None, observe: Observe | None = None) -> Iterator[Epoch]:
        """All epochs, and after each round an entry with the measures of `observe`.

        Args:
            folder: Where checkpoints and masks are written after each round. Rounds that it holds are not trained
                again; their epochs come first.
            observe: Measures the base and the model after each round.

        Raises:
            UserError: the loss is not finite.
        """
        training, number_of = self.training, self.params.rounds
        done = load_checkpoint(folder, training) if folder is not None else Progress([], [])
        self._found, recorded = list(done.masks), list(done.epochs)
        if not recorded and observe is not None:
            recorded.append(Epoch(0, observe(0, training.classifier, None)))
        yield from recorded
        ends = [round(number * training.params.epochs / number_of) for number in range(number_of + 1)]
        for number in range(len(self._found) + 1, number_of + 1):
            self._found.append(self._next_masks())
            self._renew_goal()
            for epoch in training.epochs(self.goal, ends[number] - ends[number - 1]):
                recorded.append(epoch)
                yield epoch
            if observe is not None:
                recorded.append(Epoch(training.epoch, observe(number, training.classifier, self._found[-1])))
                yield recorded[-1]
            if folder is not None and ranks.is_first():
                save_checkpoint(folder, training, Progress(self._found, recorded), self.upstream.model)
        self._renew_goal()

    def _renew_goal(self) -> None:
        """Let the counterfactual images lose the sets of all searches so far."""
        base = self.upstream.masks
        pool = Pool({}, base.partition if base.shared else base.partition[:0], {}, base.shared)
        for masks in self._found:
            pool = pool if masks is None else pool.joined(masks)
        self.goal = self.goal._replace(counterfactuals=replace(self._removals, pool=pool))

    def _next_masks(self) -> Masks | None:
        """The masks of the model as it is now; None if the searches have ended."""
        if not self._found:
            return self.upstream.masks
        if has_ended(self._found, self.params.growth):
            return None
        classifier, train = self.training.classifier, self.upstream.train
        selection = select_images(classifier, train, self.search.confidence, self.params.images)
        masks = Masks.joined(
            ranks.joined(list(searched(classifier, train, ranks.own_part(selection.index), self.search)))
        )
        return replace(masks, selection_counts=selection.counts) if bool(masks.flipped.any()) else None


def has_ended(found: list[Masks | None], growth: float) -> bool:
    """Whether no further search is worth it: the last one was left out, or its flips took hardly more regions."""
    if found[-1] is None:
        return True
    if len(found) == 1:
        return False
    assert found[-2] is not None
    return size_at_flip(found[-1]) < (1 + growth) * size_at_flip(found[-2])


def size_at_flip(masks: Masks) -> float:
    """Mean number of regions that a flip takes over all searched images.

    Images that never flip count with one more than the largest set: left out, they would make a model look worse the
    more of its predictions can no longer be flipped.
    """
    return float(torch.where(masks.flipped, masks.sizes, masks.order.shape[1] + 1).double().mean())


def save_checkpoint(folder: Path, training: Training, done: Progress, model: str) -> None:
    """Write the state after a round, so that a killed run can go on; `model` is the fingerprint of the base."""
    if done.masks[-1] is not None:
        with part(folder / ROUND.format(len(done.masks))) as writing:
            done.masks[-1].save(writing, model, training.train.identity)
    state = {
        "searched": [masks is not None for masks in done.masks],
        "epochs": [tuple(epoch) for epoch in done.epochs],
        "training": training.state(),
    }
    buffer = io.BytesIO()
    torch.save(state, buffer)  # into memory: on a full disk torch raises a RuntimeError that does not say so
    with part(folder / CHECKPOINT) as writing:
        writing.write_bytes(buffer.getvalue())


def load_checkpoint(folder: Path, training: Training) -> Progress:
    """The finished rounds in a folder, and the training in its state after the last of them; none in a fresh folder.

    Where a file of it is damaged, that is reported once, and the rounds start again.
    """
    path, remedy = folder / CHECKPOINT, "the rounds start again"
    if not is_whole(path, remedy):
        return Progress([], [])
    # without map_location a run that was killed on a GPU could not go on on a CPU
    state = torch.load(path, map_location=training.classifier.device, weights_only=True)
    files = [folder / ROUND.format(number) if used else None for number, used in enumerate(state["searched"], 1)]
    if not all(file is None or is_whole(file, remedy) for file in files):
        return Progress([], [])
    training.load_state(state["training"])
    masks = [None if file is None else Masks.read(file) for file in files]
    return Progress(masks, [Epoch(number, measures) for number, measures in state["epochs"]])
