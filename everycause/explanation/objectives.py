"""What the search maximizes: set functions of the logits with a set removed and with it alone.

p is the softmax, y the label and c the runner-up of the whole image, both fixed for the whole search.

    deletion         1 − p(y | x \\ S)
    counterfactual   20·p(c | x \\ S) + 20·(1 − p(c | S)) + 5·(1 − p(y | x \\ S)) + 5·p(y | S)
    factual          20·p(y | S) + 5·(1 − p(y | x \\ S)) + 0.01·(1 − H(p(· | S)) / log C)

Papers: arXiv 2511.12100 and 2504.00470 (LIMA); the weights are those of their authors' public code.
"""

from collections.abc import Callable
from math import log
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from everycause.shapes import Float, Int64

ObjectiveName = Literal["deletion", "counterfactual", "factual"]


class Logits(NamedTuple):
    """What the model says of candidates."""

    without: Float[Tensor, "candidates classes"]
    """With the set removed."""
    alone: Float[Tensor, "candidates classes"] | None
    """With the set alone; None for an objective that does not ask."""


class Objective(NamedTuple):
    """A set function."""

    value: Callable[[Logits, Tensor, Tensor], Tensor]
    """Of logits, labels and runners-up; larger is better."""
    passes: int
    """Forward passes per candidate."""


def log_odds(
    logits: Float[Tensor, "candidates classes"], labels: Int64[Tensor, "candidates"]
) -> Float[Tensor, "candidates"]:
    """log p(y)/(1 − p(y)): orders candidates as p(y) does, also where float32 rounds p(y) to 1."""
    own = logits.gather(1, labels[:, None])[:, 0]
    return own - logits.scatter(1, labels[:, None], -torch.inf).logsumexp(dim=1)


def runner_up(
    logits: Float[Tensor, "candidates classes"], labels: Int64[Tensor, "candidates"]
) -> Int64[Tensor, "candidates"]:
    """The most probable class beside the label."""
    return logits.scatter(1, labels[:, None], -torch.inf).argmax(dim=1)


def deletion(logits: Logits, labels: Tensor, _runner_up: Tensor) -> Tensor:
    """Orders as 1 − p(y | x \\ S) does."""
    return -log_odds(logits.without, labels)


def counterfactual(logits: Logits, labels: Tensor, runner_up: Tensor) -> Tensor:
    """The four-term form: from the label to the runner-up."""
    assert logits.alone is not None
    without, alone = logits.without.softmax(dim=1), logits.alone.softmax(dim=1)
    return (
        20 * _of(without, runner_up)
        + 20 * (1 - _of(alone, runner_up))
        + 5 * (1 - _of(without, labels))
        + 5 * _of(alone, labels)
    )


def factual(logits: Logits, labels: Tensor, _runner_up: Tensor) -> Tensor:
    """LIMA: the regions that suffice for the label."""
    assert logits.alone is not None
    without, alone = logits.without.softmax(dim=1), logits.alone.log_softmax(dim=1)
    entropy = -(alone.exp() * alone).sum(dim=1)
    return 20 * _of(alone.exp(), labels) + 5 * (1 - _of(without, labels)) + 0.01 * (1 - entropy / log(alone.shape[1]))


def _of(probabilities: Tensor, classes: Tensor) -> Tensor:
    return probabilities.gather(1, classes[:, None])[:, 0]


OBJECTIVES: dict[ObjectiveName, Objective] = {
    "deletion": Objective(deletion, 1),
    "counterfactual": Objective(counterfactual, 2),
    "factual": Objective(factual, 2),
}
