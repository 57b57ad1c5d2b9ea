from itertools import combinations, product

import numpy as np
import pytest

from codebirds.codes import Code, field, prime_power

ORDERS = (2, 3, 4, 5, 7, 8, 9)


@pytest.mark.parametrize("order", ORDERS)
def test_field_tables_satisfy_every_axiom(order: int) -> None:
    plus, times = field(order)
    everything = range(order)
    for a, b, c in product(everything, repeat=3):
        assert plus[a, plus[b, c]] == plus[plus[a, b], c]
        assert times[a, times[b, c]] == times[times[a, b], c]
        assert times[a, plus[b, c]] == plus[times[a, b], times[a, c]]
    assert np.array_equal(plus, plus.T) and np.array_equal(times, times.T)
    assert np.array_equal(plus[0], np.arange(order)) and np.array_equal(times[1], np.arange(order))
    assert all(sorted(row) == list(everything) for row in plus)
    assert all(sorted(row) == list(everything) for row in times[1:])


@pytest.mark.parametrize("order", (6, 10, 12))
def test_an_order_that_is_no_prime_power_is_refused(order: int) -> None:
    with pytest.raises(ValueError, match="prime power"):
        prime_power(order)


CODES = [Code(5, 2, 4), Code(4, 1, 4), Code(5, 3, 4), Code(6, 2, 5), Code(3, 2, 2), Code(5, 2, 9), Code(4, 4, 3)]


@pytest.mark.parametrize("code", CODES)
def test_any_dimension_many_symbols_determine_the_class_and_fewer_never_do(code: Code) -> None:
    for kept in combinations(range(code.length), code.dimension):
        assert len(np.unique(code.words[:, kept], axis=0)) == code.order**code.dimension == code.num_classes
    for kept in combinations(range(code.length), code.dimension - 1):
        assert len(np.unique(code.words[:, kept], axis=0)) < code.num_classes


@pytest.mark.parametrize("code", CODES)
def test_the_least_difference_between_two_classes_is_the_singleton_bound(code: Code) -> None:
    differences = [(first != second).sum() for first, second in combinations(code.words, 2)]
    assert min(differences) == code.distance == code.length - code.dimension + 1


def test_dimension_one_is_the_repetition_code() -> None:
    words = Code(4, 1, 4).words
    assert np.array_equal(words, np.repeat(np.arange(4)[:, None], 4, axis=1))


@pytest.mark.parametrize("code", CODES[:4])
def test_erasure_optimum_is_what_the_best_decoder_reaches(code: Code) -> None:
    for size in range(code.length + 1):
        for erased in code.subsets(size):
            kept = [part for part in range(code.length) if part not in erased]
            right = 0.0
            for word in code.words:  # the decoder guesses among all classes that look the same
                right += 1 / sum(np.array_equal(word[kept], other[kept]) for other in code.words)
            assert code.erasure_optimum(erased) == pytest.approx(right / code.num_classes)
            if size < code.distance:
                assert code.erasure_optimum(erased) == 1


def test_a_single_swap_is_corrected_and_two_are_not_always() -> None:
    code = Code(5, 2, 4)
    assert code.swap_optimum(1) == 1.0
    assert 0.5 < code.swap_optimum(2) < 1.0
    generator, count = np.random.default_rng(0), 1_000_000  # an independent estimate: count what swaps look like
    label = generator.integers(16, size=count)
    received, donor = code.words[label].copy(), code.words[(label + generator.integers(1, 16, size=count)) % 16]
    parts = generator.random((count, 5)).argsort(axis=1)[:, :2]
    rows = np.arange(count)[:, None]
    received[rows, parts] = donor[rows, parts]
    table = np.zeros((4**5, 16))
    np.add.at(table, (received @ 4 ** np.arange(5), label), 1)
    assert code.swap_optimum(2) == pytest.approx(table.max(axis=1).sum() / count, abs=0.01)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [((6, 2, 4), "at most 5 parts"), ((3, 4, 4), "dimension"), ((3, 0, 4), "dimension"), ((3, 2, 6), "prime power")],
)
def test_impossible_codes_are_refused_in_a_sentence(arguments: tuple[int, int, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Code(*arguments)
