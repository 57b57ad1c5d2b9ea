"""Birds without some of their parts: rendered away, not masked."""

from dataclasses import replace

from everycause.data.factors import Factors


def erased(factors: Factors, parts: tuple[int, ...]) -> Factors:
    """The same images rendered without some parts."""
    present = factors.present.copy()
    present[:, list(parts)] = False
    return replace(factors, present=present)
