"""Training on counterfactual images: edits of spurious factors that keep the label, edits of causes that change it.

Images of the training split are edited once, before the row is trained, against the base f. With x' the edited image,
B a blur of what was added (the prior of the pixel attack, everycause.explanation.prior) and x'' = x + B(x' − x):

    spurious    minimize  CE(f(x''), y) − ‖g(S(x'')) − g(S(x))‖²     label y
    causes      minimize  CE(f(x''), c)                              label c, the runner-up of f(x)

by steps against the sign of the gradient. S are the spurious factors that an autoencoder finds in the features of f,
and g what f would believe of them (everycause.explanation.latent_factors). Edits that fail are left out: where f no
longer sees y, or does not see c.

The controls show random smooth changes in place of the edits, of the same size, with the same images and labels.
Sources: ACE (CVPR 2023), CECAS (arXiv 2507.09881); as training data they are this project's own.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from tqdm import tqdm

from everycause.data.images import Images
from everycause.data.split import Split
from everycause.errors import UserError
from everycause.explanation.counterfactual_images import training_features
from everycause.explanation.image_selection import evenly_over_classes
from everycause.explanation.latent_factors import FactorModel, FactorParams, train_factors
from everycause.explanation.objectives import runner_up
from everycause.explanation.prior import ImageNoise, LowPassPrior, Pixels
from everycause.inference import batch_size, logits_of, logits_of_images
from everycause.models import Classifier, Readout
from everycause.networks import evaluating
from everycause.shapes import Float, Int64, UInt8
from everycause.training.counterfactuals import Recipe, Upstream

STEPS, STEP = 20, 2 / 255
"""Steps of an edit, and the change of a color in each, white being 1."""
MOST_EDITED, MOST_WITH_GRADIENTS = 4096, 64
"""Images that are edited, evenly over the classes: they are kept in memory. Images of which gradients are kept."""
FACTORS = FactorParams(causal=32, spurious=32, hidden=256, beta=1.0, epochs=40, batch_size=256, learning_rate=1.0e-3)
"""The autoencoder, as params.yaml has it for counterfactual images."""

EditLoss = Callable[[Readout, Readout, Tensor], Float[Tensor, "batch"]]
"""Of what the base reads from edited images and from the originals, and of the labels that the edits get."""


def cause_loss(seen: Readout, _before: Readout, labels: Int64[Tensor, "batch"]) -> Float[Tensor, "batch"]:
    """What edits of causes minimize."""
    return cross_entropy(seen.logits, labels, reduction="none")


class SpuriousLoss(NamedTuple):
    """What edits of spurious factors minimize."""

    factors: FactorModel

    def __call__(self, seen: Readout, before: Readout, labels: Int64[Tensor, "batch"]) -> Float[Tensor, "batch"]:
        """Stay with the label, and move what the spurious factors suggest."""
        moved = self.factors.spurious_reading(seen.activations) - self.factors.spurious_reading(before.activations)
        return cross_entropy(seen.logits, labels, reduction="none") - moved.square().sum(dim=1)


@dataclass(frozen=True)
class EditedImages:
    """Edited training images with their labels."""

    images: UInt8[Tensor, "edited 3 height width"]
    labels: Int64[Tensor, "edited"]
    place: dict[int, int]
    """Index of a training image → row of its edit. Images without one are absent."""
    probability: float
    """Probability that an image is shown with its counterfactual."""

    def covers(self, index: int) -> bool:
        """Whether the image has an edit."""
        return index in self.place

    def composed(
        self, index: Int64[Tensor, "batch"], _images: Images, _labels: Tensor, _generator: torch.Generator
    ) -> tuple[Images, Int64[Tensor, "batch"]]:
        """The edits, with their own labels."""
        rows = torch.tensor([self.place[image] for image in index.tolist()], dtype=torch.int64)
        return self.images[rows], self.labels[rows]


def edited(
    classifier: Classifier, images: Images, labels: Int64[Tensor, "batch"], loss: EditLoss, steps: int = STEPS
) -> Images:
    """Edits of images, on the CPU; the classifier is to see `labels` in them.

    Args:
        classifier: Whose gradients edit.
        images: The originals.
        labels: The labels that the edits get.
        loss: What is minimized.
        steps: Steps against the sign of the gradient.
    """
    originals, wanted = images.to(classifier.device) / 255, labels.to(classifier.device)
    changed = originals
    with evaluating(classifier):
        with torch.no_grad():
            before = _read(classifier, originals)
        for _ in range(steps):
            with torch.enable_grad():
                leaf = changed.detach().requires_grad_()
                value = loss(_read(classifier, shown(leaf, originals)), before, wanted).sum()
                (gradient,) = torch.autograd.grad(value, leaf)
            changed = (changed - STEP * gradient.sign()).clamp(0, 1)
    return _bytes(shown(changed, originals))


def shown(changed: Pixels, originals: Pixels) -> Pixels:
    """The originals and a blur of what was added to them."""
    noise = ImageNoise([0] * len(originals), originals.shape[-1], originals.device)  # a blur draws none
    return LowPassPrior().filtered(changed, originals, noise)


def randomly_changed(images: Images, edits: Images, seeds: list[int]) -> Images:
    """Random smooth changes of images, each as large as its edit: the control.

    The size is the Euclidean norm of the change. Colors that leave their range are cut off, as in edits.
    """
    originals = images / 255
    size = (edits / 255 - originals).flatten(1).norm(dim=1)
    noise = ImageNoise(seeds, images.shape[-1], images.device).draw()
    smooth = shown(originals + noise, originals) - originals
    scale = size / smooth.flatten(1).norm(dim=1).clamp_min(1e-12)
    return _bytes(originals + scale[:, None, None, None] * smooth)


def edits_of(row: str, upstream: Upstream, recipe: Recipe, seed: int, causes: bool, control: bool) -> EditedImages:
    """Edit the training images that the base predicts correctly.

    Args:
        row: The row's name, for messages.
        upstream: The base, and the images.
        recipe: Gives the probability.
        seed: Seed of the autoencoder and of random changes.
        causes: Whether causes are edited, or spurious factors.
        control: Whether random changes of the same size take the place of the edits.

    Raises:
        UserError: no edit succeeds.
    """
    base, split = upstream.base, upstream.train
    logits = logits_of(base, split).clone()
    right = (logits.argmax(dim=1) == split.labels).nonzero()[:, 0]
    rows = evenly_over_classes(right, split.labels, MOST_EDITED)
    wanted = (runner_up(logits, split.labels) if causes else split.labels)[rows]
    loss = cause_loss if causes else SpuriousLoss(spurious_factors(base, split, seed))
    size, found, kept = min(MOST_WITH_GRADIENTS, batch_size(base)), [], []
    for some in tqdm(torch.arange(len(rows)).split(size), desc="edits", disable=None, leave=False):
        images = split.read(rows[some].numpy())
        edits = edited(base, images, wanted[some], loss)
        success = logits_of_images(base, edits).argmax(dim=1) == wanted[some]
        if control:
            edits = randomly_changed(images, edits, [seed * 1_000_003 + int(index) for index in rows[some]])
        found.append(edits[success])
        kept.append(some[success])
    chosen = torch.cat(kept) if kept else rows
    if len(chosen) == 0:
        raise UserError(
            f"the row '{row}' needs edited images, and no edit of the {len(rows)} training images that are predicted "
            "correctly succeeds: train the base longer, or leave the row out of rows"
        )
    place = {int(index): number for number, index in enumerate(rows[chosen])}
    return EditedImages(torch.cat(found), wanted[chosen], place, recipe.background.augment_rate)


def spurious_factors(classifier: Classifier, split: Split, seed: int) -> FactorModel:
    """The autoencoder of the features of all training images."""
    features = training_features(classifier, split, None)
    plain = features._replace(features=features.features.clone(), probabilities=features.probabilities.clone())
    factors, epochs = train_factors(plain, FACTORS, 0, seed)
    for _ in epochs:  # trains
        pass
    return factors


def counterfactual_images(upstream: Upstream, recipe: Recipe, seed: int) -> EditedImages:
    """Edits of spurious factors; the label stays."""
    return edits_of("counterfactual_images", upstream, recipe, seed, causes=False, control=False)


def counterfactual_images_random(upstream: Upstream, recipe: Recipe, seed: int) -> EditedImages:
    """Random changes as large as the edits of spurious factors; the label stays."""
    return edits_of("counterfactual_images_random", upstream, recipe, seed, causes=False, control=True)


def counterfactual_pairs(upstream: Upstream, recipe: Recipe, seed: int) -> EditedImages:
    """Edits of causes; the label becomes the runner-up."""
    return edits_of("counterfactual_pairs", upstream, recipe, seed, causes=True, control=False)


def counterfactual_pairs_random(upstream: Upstream, recipe: Recipe, seed: int) -> EditedImages:
    """Random changes as large as the edits of causes; the label becomes the runner-up all the same."""
    return edits_of("counterfactual_pairs_random", upstream, recipe, seed, causes=True, control=True)


def _read(classifier: Classifier, images: Pixels) -> Readout:
    mean, deviation = (torch.tensor(values, device=images.device)[:, None, None] for values in classifier.statistics)
    return classifier.readout((images - mean) / deviation)


def _bytes(images: Pixels) -> Images:
    return (images * 255).round().clamp(0, 255).to(torch.uint8).cpu()
