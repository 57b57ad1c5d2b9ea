"""Rounds: masks are searched again on the model as it learns, until no cause is missing. This project's own method.

One round of masks shows which regions the model uses now. Trained without those alone it may move on to the next cause.
So each image has a pool of sets. Before each round the region search runs on the current model, and the sets that it
finds join the pool. A counterfactual image loses a random set of its pool, or none; pixels away from every set of the
pool are replaced as well, so that the model cannot use the scene instead. The searches end when flips no longer take
more regions than before. Training goes on to the same number of steps and images as in every other row.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from pydantic import Field

from everycause import ranks
from everycause.artifacts import UNFINISHED, is_whole, part
from everycause.explanation.masks import SEARCHED_TOGETHER, MaskParams, Masks, searched, select_images
from everycause.models import Classifier
from everycause.params import Section
from everycause.training.counterfactuals import Pool, Removals, Upstream
from everycause.training.fit import Epoch, Goal, Training
from everycause.unfinished import Unfinished

ROUND = "round-{}.safetensors"
"""File of the masks that joined the pool before a round, by the number of the round."""
CHECKPOINT = f"{UNFINISHED}training.pt"
"""File of the state, which names the rounds whose masks have been searched."""
PART = UNFINISHED + "round-{}-{}-{}.safetensors"
"""File of the masks of a search under way, by the numbers of round, process and chunk."""
REMEDY = "the rounds start again"
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
    """How far the rounds are."""

    masks: list[Masks | None]
    """The masks of each round that has begun; None once the searches have ended."""
    epochs: list[Epoch]
    """Everything that was recorded."""
    finished: int = 0
    """Rounds that are over."""


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
            folder: Where masks are written before each round, and the unfinished state now and then. What it holds is
                not done again; the epochs that were recorded come first.
            observe: Measures the base and the model after each round.

        Raises:
            UserError: the loss is not finite.
        """
        training, unfinished = self.training, Unfinished(folder, remedy=REMEDY)
        done = load_checkpoint(folder, training, unfinished)
        self._found, recorded, finished = list(done.masks), list(done.epochs), done.finished

        def keep_state(over: int) -> None:
            save_checkpoint(unfinished, training, Progress(self._found, recorded, over))

        if not recorded and observe is not None:
            recorded.append(Epoch(0, observe(0, training.classifier, None)))
        yield from recorded
        count = self.params.rounds
        ends = [round(number * training.params.epochs / count) for number in range(count + 1)]
        for number in range(finished + 1, count + 1):
            training.after_step = lambda over=number - 1: keep_state(over) if unfinished.due() else None
            if len(self._found) < number:
                self._found.append(self._next_masks(folder))
                save_masks(folder, self._found, self.upstream)
                keep_state(number - 1)
            self._renew_goal()
            for epoch in training.epochs(self.goal, ends[number] - training.finished):
                recorded.append(epoch)
                training.after_step()
                yield epoch
            after = observe(number, training.classifier, self._found[-1]) if observe is not None else None
            measured = [Epoch(training.epoch, after)] if after is not None else []
            recorded.extend(measured)
            keep_state(number)
            yield from measured
        self._renew_goal()

    def _renew_goal(self) -> None:
        """Let the counterfactual images lose the sets of all searches so far."""
        base = self.upstream.masks
        pool = Pool({}, base.partition if base.shared else base.partition[:0], {}, base.shared)
        for masks in self._found:
            pool = pool if masks is None else pool.joined(masks)
        self.goal = self.goal._replace(counterfactuals=replace(self._removals, pool=pool))

    def _next_masks(self, folder: Path | None) -> Masks | None:
        """The masks of the model as it is now; None if the searches have ended. A search that was killed goes on."""
        if not self._found:
            return self.upstream.masks
        if has_ended(self._found, self.params.growth):
            return None
        classifier, train = self.training.classifier, self.upstream.train
        selection = select_images(classifier, train, self.search.confidence, self.params.images)
        parts: list[Masks] = []
        own = ranks.own_part(selection.index)
        for chunk, rows in enumerate(own.split(SEARCHED_TOGETHER) if len(own) else ()):
            file = None if folder is None else folder / PART.format(len(self._found) + 1, ranks.number(), chunk)
            if file is not None and is_whole(file):
                parts.append(Masks.read(file))
                continue
            parts.extend(searched(classifier, train, rows, self.search))
            if file is not None:
                with part(file) as writing:
                    parts[-1].save(writing, self.upstream.model, train.identity)
        masks = Masks.joined(ranks.joined(parts))
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


def save_masks(folder: Path | None, found: list[Masks | None], upstream: Upstream) -> None:
    """Write the masks of the round that begins, where it has any."""
    if folder is not None and found[-1] is not None and ranks.is_first():
        with part(folder / ROUND.format(len(found))) as writing:
            found[-1].save(writing, upstream.model, upstream.train.identity)


def save_checkpoint(unfinished: Unfinished, training: Training, done: Progress) -> None:
    """Write the state, so that a killed run can go on; the masks are in files of their own."""
    unfinished.save(
        {
            "searched": [masks is not None for masks in done.masks],
            "epochs": [tuple(epoch) for epoch in done.epochs],
            "finished": done.finished,
            "training": training.state(),
        }
    )


def load_checkpoint(folder: Path | None, training: Training, unfinished: Unfinished) -> Progress:
    """How far the rounds in a folder are, and the training in that state; no rounds in a fresh folder.

    Where a file of it is damaged, that is reported once, and the rounds start again.
    """
    state = unfinished.load(training.classifier.device)
    if folder is None or state is None:
        return Progress([], [])
    files = [folder / ROUND.format(number) if used else None for number, used in enumerate(state["searched"], 1)]
    if not all(file is None or is_whole(file, REMEDY) for file in files):
        return Progress([], [])
    training.load_state(state["training"])
    masks = [None if file is None else Masks.read(file) for file in files]
    return Progress(masks, [Epoch(number, measures) for number, measures in state["epochs"]], state["finished"])
