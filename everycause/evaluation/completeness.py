"""Causal completeness on Codebirds: whether a classifier has learned every sufficient cause of a class, or just one.

All measures are computed from the accuracies with each of the 2^n subsets of parts erased. The best possible values
come from the code.
"""

from itertools import combinations
from math import comb, exp, log
from typing import NamedTuple

from codebirds.birds import erasure_name
from codebirds.codes import Code

Accuracies = dict[tuple[int, ...], float]
"""The accuracy, in [0, 1], with a set of parts erased, for every set of parts."""


class Profile(NamedTuple):
    """Accuracy after e = 0, 1, … n−1 erasures."""

    mean: tuple[float, ...]
    """Mean over the subsets of size e."""
    worst: tuple[float, ...]
    """Minimum over the subsets of size e."""
    optimum: tuple[float, ...]
    """The largest mean that any classifier can reach, from the code."""


def profile(accuracies: Accuracies, code: Code) -> Profile:
    """The accuracies by number of erased parts, beside the best possible ones."""
    sizes = [code.subsets(size) for size in range(code.length)]
    return Profile(
        mean=tuple(sum(accuracies[parts] for parts in subsets) / len(subsets) for subsets in sizes),
        worst=tuple(min(accuracies[parts] for parts in subsets) for subsets in sizes),
        optimum=tuple(sum(map(code.erasure_optimum, subsets)) / len(subsets) for subsets in sizes),
    )


def completeness_score(profile: Profile, num_classes: int) -> float:
    """The area of the mean profile above chance over that of the optimum: 0 is chance, 1 is every cause learned."""
    chance = 1 / num_classes
    return sum(value - chance for value in profile.mean) / sum(value - chance for value in profile.optimum)


def completeness_weights(code: Code) -> tuple[dict[str, float], float]:
    """The weight of each erasure's accuracy in the completeness score, by the name of its view, and what to subtract.

    The score is linear in the accuracies, so with these weights it is a mean over images.
    """
    chance, sizes = 1 / code.num_classes, [code.subsets(size) for size in range(code.length)]
    optima = [sum(map(code.erasure_optimum, subsets)) / len(subsets) for subsets in sizes]
    area = sum(optimum - chance for optimum in optima)
    weights = {erasure_name(parts): 1 / (len(subsets) * area) for subsets in sizes for parts in subsets}
    return weights, code.length * chance / area


def shapley(accuracies: Accuracies, parts: int) -> tuple[float, ...]:
    """The exact Shapley value of each part for the accuracy; they sum to accuracy(all) − accuracy(none)."""
    values = []
    for part in range(parts):
        others = [other for other in range(parts) if other != part]
        value = 0.0
        for size in range(parts):
            for absent in combinations(others, size):
                with_part, without = accuracies[absent], accuracies[tuple(sorted((*absent, part)))]
                value += (with_part - without) / (parts * comb(parts - 1, size))
        values.append(value)
    return tuple(values)


def reliance(accuracies: Accuracies, parts: int) -> tuple[float, ...]:
    """Each part's share of the sum of the positive Shapley values; all zero for a model that uses no part."""
    positive = [max(0.0, value) for value in shapley(accuracies, parts)]
    total = sum(positive)
    return tuple(value / total if total > 0 else 0.0 for value in positive)


def effective_causes(shares: tuple[float, ...]) -> float:
    """The number of equally used parts with the same entropy: exp(entropy), from 1 to n; 0 where no part is used."""
    if sum(shares) == 0:
        return 0.0
    return exp(-sum(share * log(share) for share in shares if share > 0))
