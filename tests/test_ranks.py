"""What processes tell each other, and how a stage starts and ends when several share it."""

import torch

from everycause import ranks
from tests.together import together


def told() -> dict:
    """What a process sees of the others."""
    with ranks.alone():
        alone = ranks.count(), ranks.number(), ranks.gathered("mine")
    return {
        "place": (ranks.number(), ranks.count(), ranks.is_first(), ranks.local_number(), ranks.local_count()),
        "gathered": ranks.gathered(ranks.number()),
        "decided": ranks.decided(lambda: f"by {ranks.number()}"),
        "mapped": ranks.mapped(lambda piece: (piece, ranks.number()), "abcd"),
        "own": ranks.own_part(torch.arange(5)).tolist(),
        "joined": ranks.joined([ranks.number()] * (1 + ranks.number())),
        "alone": alone,
    }


def test_a_process_without_others_exchanges_nothing() -> None:
    assert told() == {
        "place": (0, 1, True, 0, 1),
        "gathered": [0],
        "decided": "by 0",
        "mapped": [("a", 0), ("b", 0), ("c", 0), ("d", 0)],
        "own": [0, 1, 2, 3, 4],
        "joined": [0],
        "alone": (1, 0, ["mine"]),
    }


def test_processes_divide_pieces_and_hear_the_same() -> None:
    first, second, third = together(told, processes=3)
    assert [one.pop("place") for one in (first, second, third)] == [
        (0, 3, True, 0, 3), (1, 3, False, 1, 3), (2, 3, False, 2, 3)
    ]  # fmt: skip
    assert [one.pop("own") for one in (first, second, third)] == [[0, 1], [2, 3], [4]]
    assert first == second == third
    assert first["mapped"] == [("a", 0), ("b", 1), ("c", 2), ("d", 0)]
    assert first["gathered"] == [0, 1, 2] and first["decided"] == "by 0" and first["joined"] == [0, 1, 1, 2, 2, 2]
    assert first["alone"] == (1, 0, ["mine"])
