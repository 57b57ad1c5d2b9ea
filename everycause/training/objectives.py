"""Training objectives of other work, as rows to compare with: what a step minimizes in place of the joint loss.

Each is one small class with the paper that it comes from. They see the same images and steps as every other row.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss, one_hot

from everycause.data.sources import groups
from everycause.errors import UserError
from everycause.models import Classifier
from everycause.networks import last_layers
from everycause.shapes import Float, Int64
from everycause.training.counterfactuals import Recipe, Upstream
from everycause.training.division import all_rows, own_rows
from everycause.training.steps import Step

MUTED_FEATURES, MUTED_IMAGES = 1 / 3, 1 / 3
"""Shares of the features, and of the images of a batch, that representation self-challenging mutes (paper, 3.2)."""
DECOUPLING = 0.1
"""λ of spectral decoupling."""
DISTILLATION = 30.0
"""Weight of the distance between the features of student and teacher (Xiao et al.)."""
GROUP_STEP = 0.01
"""Step size of the group weights, η (Sagawa et al., for Waterbirds and CelebA)."""


Entropy = Callable[..., Tensor]


@runtime_checkable
class Objective(Protocol):
    """What a step minimizes."""

    def terms(
        self, classifier: Classifier, inputs: Float[Tensor, "images 3 height width"], step: Step, entropy: Entropy
    ) -> dict[str, Tensor]:
        """Every term by name, and what is minimized as `loss`.

        Args:
            classifier: The network in training.
            inputs: The originals of the step, then its counterfactual images, normalized, where the network lies.
            step: Their labels and places in the training split.
            entropy: torch's cross_entropy, perhaps with smoothed labels.
        """


@runtime_checkable
class Stateful(Protocol):
    """An objective that changes from step to step."""

    def state(self) -> Tensor:
        """What the next step depends on."""

    def load_state(self, state: Tensor) -> None:
        """Go on from a saved state."""


class Features(NamedTuple):
    """What one forward pass gives before and behind the last layer."""

    features: Float[Tensor, "images features"]
    """The input of the last layer."""
    logits: Float[Tensor, "images classes"]
    head: nn.Linear
    """The last layer."""


def features_of(classifier: Classifier, inputs: Float[Tensor, "images 3 height width"]) -> Features:
    """The features that the last layer reads, and the logits.

    Raises:
        UserError: the network has several last layers, or one that is not linear.
    """
    layers = last_layers(classifier.network)
    if len(layers) != 1 or not isinstance(layers[0], nn.Linear):
        raise UserError(
            f"this row needs a network with one linear last layer, which {classifier.params.name} has not: leave it "
            "out of rows, or set model.head to linear"
        )
    seen: list[Tensor] = []
    handle = layers[0].register_forward_pre_hook(lambda _module, arguments: seen.append(arguments[0]))
    try:
        logits = all_rows(classifier(own_rows(inputs)), len(inputs))
    finally:
        handle.remove()
    return Features(all_rows(seen[0], len(inputs)), logits, layers[0])


class SelfChallenging:
    """Representation self-challenging: the features that raise the label's logit most are muted.

    Paper: Huang, Wang, Xing, Huang, ECCV 2020, arXiv 2007.02454, section 3, on pooled features: there the gradient of
    the label's logit is a row of the last layer's weights. Only the third of the images whose label loses most
    probability is muted, as its section on the batch percentage says.
    """

    def terms(self, classifier: Classifier, inputs: Tensor, step: Step, entropy: Entropy) -> dict[str, Tensor]:
        """Cross-entropy with muted features."""
        labels = step.labels.to(inputs.device)
        features, logits, head = features_of(classifier, inputs)
        with torch.no_grad():
            keep = kept_features(features, logits, labels, head)
        challenged = head(features * keep)
        return {
            "cross_entropy": entropy(logits.detach(), labels),
            "loss": entropy(challenged, labels),
        }


def kept_features(
    features: Float[Tensor, "batch features"],
    logits: Float[Tensor, "batch classes"],
    labels: Int64[Tensor, "batch"],
    head: nn.Linear,
) -> Float[Tensor, "batch features"]:
    """1 for features that stay, 0 for those that representation self-challenging mutes."""
    gradient = head.weight[labels]
    below = gradient < gradient.quantile(1 - MUTED_FEATURES, dim=1, keepdim=True)
    right = one_hot(labels, logits.shape[1]).bool()
    lost = logits.softmax(dim=1)[right] - head(features * below).softmax(dim=1)[right]
    spared = lost < lost.quantile(1 - MUTED_IMAGES)
    return (below | spared[:, None]).to(features.dtype)


class SpectralDecoupling:
    """Spectral decoupling: logits are kept small, so that features learned late are not starved of gradient.

    Paper: Pezeshki et al., NeurIPS 2021, arXiv 2011.09468: λ/2 · ‖f(x)‖² beside cross-entropy.
    """

    def terms(self, classifier: Classifier, inputs: Tensor, step: Step, entropy: Entropy) -> dict[str, Tensor]:
        """Cross-entropy and the squared length of the logits."""
        logits, labels = all_rows(classifier(own_rows(inputs)), len(inputs)), step.labels.to(inputs.device)
        plain, length = entropy(logits, labels), logits.square().sum(dim=1).mean()
        return {"cross_entropy": plain, "logits": length, "loss": plain + DECOUPLING / 2 * length}


class MaskedDistillation:
    """Masked images as counterfactual samples: on them the features stay close to those of a frozen teacher.

    Paper: Xiao et al., CVPR 2023, arXiv 2303.03052. There the teacher is a large pretrained network that is fine-tuned;
    here it is the base (adapted). The labels of masked images are not used.

    Args:
        teacher: The base; a copy of it is kept and never changes.
    """

    def __init__(self, teacher: Classifier) -> None:
        self._teacher = copy.deepcopy(teacher).eval().requires_grad_(False)

    def terms(self, classifier: Classifier, inputs: Tensor, step: Step, entropy: Entropy) -> dict[str, Tensor]:
        """Cross-entropy of the originals, and the distance of the features of masked images."""
        count, labels = len(step.labels), step.labels.to(inputs.device)
        features, logits, _ = features_of(classifier, inputs)
        terms = {"cross_entropy": entropy(logits[:count], labels)}
        loss = terms["cross_entropy"]
        if len(inputs) > count:
            with torch.no_grad():
                wanted = features_of(self._teacher, inputs[count:]).features
            terms["distillation"] = mse_loss(features[count:], wanted)
            loss = loss + DISTILLATION * terms["distillation"]
        return {**terms, "loss": loss}


@dataclass
class GroupRobust:
    """Group distributionally robust optimization: groups with a high loss get a higher weight, step by step.

    Paper: Sagawa, Koh, Hashimoto, Liang, ICLR 2020, arXiv 1911.08731, algorithm 1. It needs to know the groups.
    """

    groups: Int64[Tensor, "images"]
    """The group of each training image."""
    _weights: Float[Tensor, "groups"] = field(init=False)

    def __post_init__(self) -> None:
        count = int(self.groups.max()) + 1
        self._weights = torch.full((count,), 1 / count)

    @property
    def weights(self) -> Float[Tensor, "groups"]:
        """The weight of each group, q, which sum to 1."""
        return self._weights

    def state(self) -> Tensor:
        """The weight of each group."""
        return self._weights

    def load_state(self, state: Tensor) -> None:
        """Go on with saved weights."""
        self._weights = state.cpu()

    def terms(self, classifier: Classifier, inputs: Tensor, step: Step, entropy: Entropy) -> dict[str, Tensor]:
        """The weighted sum of the groups' mean losses; a group without an image in the batch adds 0."""
        logits, labels = all_rows(classifier(own_rows(inputs)), len(inputs)), step.labels.to(inputs.device)
        losses = entropy(logits, labels, reduction="none")
        member = one_hot(self.groups[step.index], len(self._weights)).to(losses.dtype).to(losses.device)
        by_group = (losses @ member) / member.sum(dim=0).clamp_min(1)
        grown = self._weights.to(losses.device) * (GROUP_STEP * by_group.detach()).exp()
        self._weights = (grown / grown.sum()).cpu()
        weighted = (self._weights.to(losses.device) * by_group).sum()
        return {"cross_entropy": losses.mean().detach(), "worst_group": by_group.max().detach(), "loss": weighted}


def self_challenging(_upstream: Upstream, _recipe: Recipe) -> Objective:
    """Representation self-challenging."""
    return SelfChallenging()


def spectral_decoupling(_upstream: Upstream, _recipe: Recipe) -> Objective:
    """Spectral decoupling."""
    return SpectralDecoupling()


def masked_distillation(upstream: Upstream, _recipe: Recipe) -> Objective:
    """Distillation from the base on masked images."""
    return MaskedDistillation(upstream.base)


def group_dro(_upstream: Upstream, recipe: Recipe) -> Objective:
    """Group distributionally robust optimization."""
    return GroupRobust(groups(recipe.data, "train"))
