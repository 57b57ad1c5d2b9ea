"""Maximum-distance-separable (MDS) codes: the causal ground truth of Codebirds.

A class is a codeword of an (extended) Reed-Solomon code. In an MDS code any `dimension` symbols determine the codeword
and fewer never do. So every set of that many parts is a minimal sufficient cause of its class.

Source: F. J. MacWilliams and N. J. A. Sloane, The Theory of Error-Correcting Codes, chapters 10 and 11.
"""

from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from itertools import combinations, product
from typing import NamedTuple

import numpy as np

from codebirds.shapes import Int


class FieldTables(NamedTuple):
    """Addition and multiplication of GF(q) on the integers 0 … q−1."""

    plus: Int[np.ndarray, "q q"]
    times: Int[np.ndarray, "q q"]


def prime_power(order: int) -> tuple[int, int]:
    """The prime p and the exponent m with p**m = `order`.

    Raises:
        ValueError: `order` is not a prime power, so no field has that many elements.
    """
    for prime in range(2, order + 1):
        if order % prime == 0:
            exponent = round(np.log(order) / np.log(prime))
            if prime**exponent == order:
                return prime, exponent
            break
    raise ValueError(
        f"no field has {order} elements: the number of variants must be a prime power (2, 3, 4, 5, 7, 8, 9, …)"
    )


def field(order: int) -> FieldTables:
    """The field GF(`order`): polynomials over GF(p), written in base p, modulo an irreducible polynomial.

    The modulus is found by trial: it is irreducible exactly when the product has no zero divisors.
    """
    prime, exponent = prime_power(order)
    digits = np.array([[value // prime**i % prime for i in range(exponent)] for value in range(order)])
    weights = prime ** np.arange(exponent)
    plus = ((digits[:, None] + digits[None]) % prime) @ weights
    for tail in product(range(prime), repeat=exponent):
        times = _products(digits, np.array(tail), prime) @ weights
        if np.all(times[1:, 1:] != 0):
            return FieldTables(plus, times)
    raise AssertionError("an irreducible polynomial exists for every prime power")


def _products(digits: np.ndarray, tail: np.ndarray, prime: int) -> np.ndarray:
    """All pairwise products of polynomials modulo x^m + tail, by shift and add."""
    exponent = digits.shape[1]
    result = np.zeros((len(digits), len(digits), exponent), dtype=int)
    shifted = digits.copy()
    for power in range(exponent):
        result = (result + digits[:, None, power : power + 1] * shifted[None]) % prime
        carry = shifted[:, -1:]
        shifted = (np.roll(shifted, 1, axis=1) * (np.arange(exponent) > 0) - carry * tail) % prime
    return result


@dataclass(frozen=True)
class Code:
    """The [length, dimension, length − dimension + 1] code over GF(order), one codeword per class.

    Raises:
        ValueError: the three numbers do not give an MDS code.
    """

    length: int
    """Number of informative parts, n."""
    dimension: int
    """Number of parts that determine the class, k."""
    order: int
    """Number of variants of each part, q."""

    def __post_init__(self) -> None:
        prime_power(self.order)
        if not 1 <= self.dimension <= self.length:
            raise ValueError(
                f"the code's dimension ({self.dimension}) must lie between 1 and its length ({self.length})"
            )
        if self.length > self.order + 1:
            raise ValueError(f"a code over {self.order} variants has at most {self.order + 1} parts, not {self.length}")

    @property
    def distance(self) -> int:
        """The least number of parts in which two classes differ."""
        return self.length - self.dimension + 1

    @cached_property
    def words(self) -> Int[np.ndarray, "classes length"]:
        """The codewords: each message, as a polynomial, evaluated at the field's elements and, last, at infinity."""
        tables = field(self.order)
        messages = np.array(list(product(range(self.order), repeat=self.dimension)))
        columns = []
        for point in range(self.length):
            if point == self.order:
                columns.append(messages[:, -1])
                continue
            value = np.zeros(len(messages), dtype=int)
            for coefficient in messages.T[::-1]:
                value = tables.plus[tables.times[value, point], coefficient]
            columns.append(value)
        return np.stack(columns, axis=1)

    @property
    def num_classes(self) -> int:
        """order ** dimension."""
        return len(self.words)

    def subsets(self, size: int) -> list[tuple[int, ...]]:
        """All sets of `size` parts, in lexicographic order."""
        return list(combinations(range(self.length), size))

    def erasure_optimum(self, erased: tuple[int, ...]) -> float:
        """The best accuracy possible without the `erased` parts: distinct remainders over classes."""
        kept = [part for part in range(self.length) if part not in erased]
        remainders = np.unique(self.words[:, kept], axis=0) if kept else [()]
        return len(remainders) / self.num_classes

    def swap_optimum(self, size: int) -> float:
        """The best accuracy possible when `size` unknown parts come from another class, by exact enumeration."""
        evidence: dict[tuple[int, ...], dict[int, Fraction]] = {}
        share = Fraction(1, self.num_classes * (self.num_classes - 1) * len(self.subsets(size)))
        for label, word in enumerate(self.words):
            for donor in (other for other in range(self.num_classes) if other != label):
                for parts in self.subsets(size):
                    received = word.copy()
                    received[list(parts)] = self.words[donor, list(parts)]
                    labels = evidence.setdefault(tuple(received), {})
                    labels[label] = labels.get(label, Fraction(0)) + share
        return float(sum(max(labels.values()) for labels in evidence.values()))
