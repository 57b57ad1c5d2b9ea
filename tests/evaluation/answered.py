"""Predictions from logits that are at hand whole, for tests of what is computed from them."""

from torch import Tensor

from everycause.evaluation.predictions import Predictions, answers, restricted


def predictions_of(
    logits: dict[str, Tensor],
    labels: dict[str, Tensor],
    conforms: Tensor | None = None,
    groups: Tensor | None = None,
    among: dict[str, Tensor] | None = None,
    released: bool = False,
) -> Predictions:
    """What logits say of the images of every view; the test images also among the classes of other views."""
    among = {} if among is None else among
    views = {name: answers(restricted(one, among.get(name)), labels[name]) for name, one in logits.items()}
    classes = next(iter(logits.values())).shape[1]
    compared = next((restricted(logits["test"], some).argmax(dim=1) for some in among.values()), None)
    return Predictions(views, classes, conforms, groups, among, compared, released)
