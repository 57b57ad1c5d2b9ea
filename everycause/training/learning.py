"""Which weights learn: everything, or some modules while the rest stands still."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from everycause.model import Classifier

EVERYTHING = ["all"]


def learners(classifier: Classifier, names: list[str]) -> list[nn.Module]:
    """The modules that learn: `all`, `head`, or dotted names within the network.

    Raises:
        ValueError: the network has no module of that name.
    """
    if names == EVERYTHING:
        return [classifier.network]
    modules = dict(classifier.network.named_modules())
    if unknown := [name for name in names if name != "head" and (name not in modules or not name)]:
        top = ", ".join(name for name, _ in classifier.network.named_children())
        raise ValueError(f"trainable: '{unknown[0]}' is neither 'all' nor 'head' nor a module of {classifier.params.name} (top level: {top})")
    return [classifier.network.get_classifier() if name == "head" else modules[name] for name in names]


def learned(classifier: Classifier, names: list[str]) -> list[nn.Parameter]:
    """The parameters of the learners, each once.

    Raises:
        ValueError: as learners, or there are none.
    """
    parameters = list(dict.fromkeys(value for module in learners(classifier, names) for value in module.parameters()))
    if not parameters:
        raise ValueError(f"trainable: {', '.join(names)} of {classifier.params.name} holds no weights: name modules that do")
    return parameters


@contextmanager
def learning(classifier: Classifier, names: list[str]) -> Iterator[None]:
    """Training mode for the learners alone: what stands still needs no gradient and keeps its statistics. Ends in evaluation mode."""
    wanted = {id(value) for value in learned(classifier, names)}
    before = [(value, value.requires_grad) for value in classifier.parameters()]
    classifier.eval()
    for module in learners(classifier, names):
        module.train()
    for value, _ in before:
        value.requires_grad_(id(value) in wanted)
    try:
        yield
    finally:
        for value, required in before:
            value.requires_grad_(required)
        classifier.eval()
