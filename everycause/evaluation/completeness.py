"""Causal completeness on Codebirds: has the classifier learned every sufficient cause, or just one?

All measures are computed from the accuracies of the 2^n erasure subsets; the optima come from the code.
"""

from itertools import combinations
from math import comb, exp, log
from typing import NamedTuple

from codebirds.codes import Code

Accuracies = dict[tuple[int, ...], float]
"""The accuracy with a set of parts absent, for every set."""


class Profile(NamedTuple):
    """Accuracy after e = 0, 1, … erasures."""

    mean: tuple[float, ...]
    """Over the subsets of size e."""
    worst: tuple[float, ...]
    """Over the subsets of size e."""
    optimum: tuple[float, ...]
    """The best mean possible, from the code."""


def profile(accuracies: Accuracies, code: Code) -> Profile:
    """The completeness profile for e = 0 … n−1."""
    sizes = [code.subsets(size) for size in range(code.length)]
    return Profile(
        mean=tuple(sum(accuracies[parts] for parts in subsets) / len(subsets) for subsets in sizes),
        worst=tuple(min(accuracies[parts] for parts in subsets) for subsets in sizes),
        optimum=tuple(sum(map(code.erasure_optimum, subsets)) / len(subsets) for subsets in sizes),
    )


def completeness_score(profile: Profile, num_classes: int) -> float:
    """The profile's area above chance over the optimum's: 0 is chance, 1 is every cause learned."""
    chance = 1 / num_classes
    return sum(value - chance for value in profile.mean) / sum(value - chance for value in profile.optimum)


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
    """Each part's share of the Shapley values, negative ones counted as none; all zero for a model that uses no part."""
    positive = [max(0.0, value) for value in shapley(accuracies, parts)]
    total = sum(positive)
    return tuple(value / total if total > 0 else 0.0 for value in positive)


def effective_causes(shares: tuple[float, ...]) -> float:
    """The number of parts that an even reliance would be spread over: exp(entropy), from 1 to n; 0 for no reliance."""
    if sum(shares) == 0:
        return 0.0
    return exp(-sum(share * log(share) for share in shares if share > 0))
