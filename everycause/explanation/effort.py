"""How much the fast search tries."""

from typing import NamedTuple

PAIRS = ((0, 1), (0, 2), (1, 2), (0, 3))
"""Which two regions a swap gives back: positions in the order in which their return restores the least."""


class Effort(NamedTuple):
    """How much the fast search tries; chosen on 320 training images of Codebirds (reports/log.md)."""

    dimmed: float = 0.3
    """How far the remaining regions are removed where the derivative is taken."""
    trust: float = 0.8
    """Share of the log-odds that may be used up, as the derivative predicts, by regions that are removed unseen."""
    unseen: int = 6
    """The most regions that are removed unseen in one step."""
    tried: int = 4
    """Regions tried in a step."""
    spread: float = 0.3
    """Only regions with at least this share of the best one's derivative are tried."""
    overshoot: int = 4
    """Regions by which a set may exceed the limit before it is pruned."""
    swaps: int = 1
    """Swaps attempted for each image."""


FAST = Effort()
CAREFUL = FAST._replace(trust=0.0, tried=8, spread=0.0, overshoot=6)
"""The second attempt at images that did not flip."""
