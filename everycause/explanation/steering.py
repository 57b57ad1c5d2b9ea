"""Counterfactual images: the change that makes a classifier see another class, through a prior of images.

ACE (Jeanneret, Simon, Jurie, CVPR 2023, section 3), with x' the changed image, F a prior's filter and t the target:

    x' ← x;  N times:  g = ∇ₓ' [ CE(f(F(x')), t) + w·‖x' − x‖ ],  x' ← clip(x' − step · sign(g), 0, 1)

and then a refinement: places that hardly changed are kept as they were, and the prior repaints the others.

CECAS (arXiv 2507.09881) steers the change away from spurious factors. In our version it adds

    α · ‖g(S(F(x'))) − g(S(x))‖²

with S and g of everycause.explanation.latent_factors. With α = 0 nothing is added, and the result is that of ACE.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from pydantic import Field, field_validator, model_validator
from torch import Tensor
from torch.nn.functional import cross_entropy, max_pool2d

from everycause.data.images import Images
from everycause.errors import UserError
from everycause.explanation.latent_factors import FactorModel, FactorParams
from everycause.explanation.objectives import runner_up
from everycause.explanation.prior import ImageNoise, Pixels, Prior
from everycause.models import Classifier, Readout
from everycause.networks import evaluating
from everycause.params import Section
from everycause.precision import autocast
from everycause.shapes import Bool, Float, Int64, UInt8

RUNNER_UP, TRUE_LABEL = "runner_up", "true_label"
PIXEL_ATTACK, ACE, CECAS = "pixel_attack", "ace", "cecas-"
PUBLISHED_SIDE = 256
"""Image size, in pixels, that the published width of the dilation belongs to (CelebA HQ)."""


class CounterfactualParams(Section):
    """How counterfactual images are made."""

    methods: list[str] = Field(min_length=1)
    """`pixel_attack` without a prior, `ace`, or `cecas-` and a number, the α of the steering term."""
    target: str = Field(min_length=1)
    """`runner_up` (of images that are predicted correctly), `true_label` (of those that are not), or a class name."""
    images: int = Field(ge=1, le=1_000_000)
    """The most validation images, evenly over the classes."""
    iterations: int = Field(ge=0, le=100_000)
    """Steps of the attack, N; published: 50, and 100 on ImageNet."""
    step: float = Field(gt=0, le=255)
    """Change of a color per step, in gray levels of 255."""
    distance: Literal["l1", "l2"]
    """The norm of the change: ℓ1, or ℓ2 squared."""
    distance_weight: float = Field(ge=0, le=1_000_000)
    """Its weight w; published for ℓ1: 0.001. The norm is a sum over colors from 0 to 1."""
    chain: int = Field(ge=1, le=1000)
    """Steps of the prior's respaced chain."""
    tau: int = Field(ge=1, le=1000)
    """Steps of it that the filter takes, τ."""
    eta: float = Field(ge=0, le=1)
    """Noise of the denoising steps: 1 is DDPM, as published, 0 is DDIM."""
    dilation: int = Field(ge=1, le=1023)
    """Width, in pixels at an image size of 256, by which changed places grow before the refinement."""
    threshold: float = Field(ge=0, le=1)
    """Places whose change is below this share of the image's largest are kept as they were."""
    spurious_attribute: str | None
    """A known attribute of the training images that the spurious factors are taught, such as `scene`; null for none."""
    batch_size: int = Field(ge=1, le=100_000)
    """Images that are changed together."""
    shard: int = Field(ge=1, le=1_000_000)
    """Images per file; a killed run goes on after its last finished file."""
    checkpointed: bool
    """Whether activations are computed again for the gradient: less memory, more time."""
    precision: Literal["float32", "bfloat16"]
    """Of classifier and prior; bfloat16 is faster on a GPU, and gives other images."""
    factors: FactorParams
    """Of `cecas-` methods."""

    @field_validator("methods")
    @classmethod
    def _are_methods(cls, methods: list[str]) -> list[str]:
        for method in methods:
            steering_weight(method)
        return methods

    @model_validator(mode="after")
    def _tau_fits_the_chain(self) -> "CounterfactualParams":
        if self.tau > self.chain:
            raise ValueError(f"tau is {self.tau}, and the chain has {self.chain} steps: τ must not be larger")
        return self


def steering_weight(method: str) -> float:
    """The α of a method.

    Raises:
        UserError: there is no such method.
    """
    if method in (PIXEL_ATTACK, ACE):
        return 0.0
    number = method.removeprefix(CECAS)
    if number == method or not number.replace(".", "", 1).isdecimal():
        raise UserError(
            f"'{method}' is no method of counterfactual images: name {PIXEL_ATTACK}, {ACE}, or {CECAS} and a number, "
            f"such as {CECAS}1"
        )
    return float(number)


class Targets(NamedTuple):
    """Which images are to become what."""

    rows: Int64[Tensor, "chosen"]
    """Index of each image."""
    classes: Int64[Tensor, "chosen"]
    """The class that the classifier is to see."""


def chosen_targets(
    logits: Float[Tensor, "images classes"], labels: Int64[Tensor, "images"], target: str, class_names: tuple[str, ...]
) -> Targets:
    """The images that have a target, and their targets; no target is the prediction.

    Args:
        logits: Of the classifier.
        labels: The true classes.
        target: As CounterfactualParams.target.
        class_names: The classes, in the order of the logits.

    Raises:
        UserError: there is no such class, or no image has a target.
    """
    prediction = logits.argmax(dim=1)
    match target:
        case "runner_up":
            eligible, classes = prediction == labels, runner_up(logits, labels)
        case "true_label":
            eligible, classes = prediction != labels, labels
        case _ if target in class_names:
            classes = torch.full_like(labels, class_names.index(target))
            eligible = prediction != classes
        case _:
            shown = ", ".join(class_names[:4]) + (", …" if len(class_names) > 4 else "")
            raise UserError(
                f"counterfactuals.target is '{target}': name {RUNNER_UP}, {TRUE_LABEL} or a class ({shown})"
            )
    rows = eligible.nonzero()[:, 0]
    if len(rows) == 0:
        raise UserError(
            f"no validation image can become the target '{target}': for {TRUE_LABEL} some must be predicted wrongly, "
            f"for {RUNNER_UP} correctly, and for a class as another one"
        )
    return Targets(rows, classes[rows])


@dataclass(frozen=True)
class Attack:
    """How images are changed."""

    classifier: Classifier
    prior: Prior
    params: CounterfactualParams
    factors: FactorModel | None = None
    """The factors that are steered away from; None for ACE."""
    alpha: float = 0.0
    """Weight of the steering term, α."""


class Explained(NamedTuple):
    """Counterfactual images, and what was on the way to them."""

    attacked: UInt8[Tensor, "batch 3 height width"]
    """The images before the refinement, x'."""
    kept: Bool[Tensor, "batch height width"]
    """The places where the counterfactual is the original."""
    images: UInt8[Tensor, "batch 3 height width"]
    """The counterfactual images."""


def counterfactuals(attack: Attack, images: Images, targets: Int64[Tensor, "batch"], seeds: list[int]) -> Explained:
    """The images, changed until the classifier sees their targets, and refined; on the CPU.

    Args:
        attack: How.
        images: The originals.
        targets: The class that each is to become.
        seeds: Seed of the noise of each image.

    Raises:
        UserError: a target is what the classifier sees already.
    """
    device = attack.classifier.device
    originals, wanted = images.to(device) / 255, targets.to(device)
    noise = ImageNoise(seeds, images.shape[-1], device)
    with evaluating(attack.classifier):
        with torch.no_grad():
            before = read(attack, originals)
        if bool((same := before.logits.argmax(dim=1) == wanted).any()):
            first = int(same.nonzero()[0, 0])
            name = attack.classifier.class_names[int(wanted[first])]
            raise UserError(f"the target '{name}' of image {first} is already its prediction: name another target")
        changed = originals
        for _ in range(attack.params.iterations):
            changed = stepped(attack, changed, originals, wanted, before, noise)
    kept = kept_places(originals, changed, attack.params)
    refined = attack.prior.refined(changed, originals, kept, noise)
    return Explained(_bytes(changed), kept.cpu(), _bytes(refined))


def stepped(
    attack: Attack,
    changed: Pixels,
    originals: Pixels,
    targets: Int64[Tensor, "batch"],
    before: Readout,
    noise: ImageNoise,
) -> Pixels:
    """One step of the attack against the sign of the gradient."""
    with torch.enable_grad():
        changed = changed.detach().requires_grad_()
        loss = attack_loss(attack, changed, originals, targets, before, noise).sum()
        (gradient,) = torch.autograd.grad(loss, changed)
    return (changed.detach() - attack.params.step / 255 * gradient.sign()).clamp(0, 1)


def attack_loss(
    attack: Attack,
    changed: Pixels,
    originals: Pixels,
    targets: Int64[Tensor, "batch"],
    before: Readout,
    noise: ImageNoise,
) -> Float[Tensor, "batch"]:
    """What the attack minimizes, for each image.

    Args:
        attack: How.
        changed: The changed images, x'.
        originals: The images as they were, x.
        targets: The class that each is to become.
        before: What the classifier reads from the originals.
        noise: Noise of the prior's filter.
    """
    seen = read(attack, attack.prior.filtered(changed, originals, noise))
    loss = cross_entropy(seen.logits, targets, reduction="none")
    change = changed - originals
    size = change.abs() if attack.params.distance == "l1" else change.square()
    loss = loss + attack.params.distance_weight * size.sum(dim=(1, 2, 3))
    if attack.factors is None or attack.alpha == 0:
        return loss
    moved = attack.factors.spurious_reading(seen.activations) - attack.factors.spurious_reading(before.activations)
    return loss + attack.alpha * moved.square().sum(dim=1)


def read(attack: Attack, images: Pixels) -> Readout:
    """Logits and features of images with colors from 0 to 1; gradients pass through."""
    statistics = attack.classifier.statistics
    mean, deviation = (torch.tensor(values, device=images.device)[:, None, None] for values in statistics)
    with autocast(images.device, attack.params.precision):
        found = attack.classifier.readout((images - mean) / deviation)
    return Readout(found.logits.float(), found.activations.float())


def kept_places(originals: Pixels, changed: Pixels, params: CounterfactualParams) -> Bool[Tensor, "batch height width"]:
    """The places that hardly changed: below a share of the image's largest change, nor near places above it."""
    change = (changed - originals).abs().sum(dim=1, keepdim=True)
    largest = change.amax(dim=(1, 2, 3), keepdim=True)
    shares = change / torch.where(largest > 0, largest, torch.ones_like(largest))
    width = dilation_width(params.dilation, originals.shape[-1])
    grown = max_pool2d(shares, width, stride=1, padding=width // 2)
    return ((grown < params.threshold) | (largest == 0))[:, 0]


def dilation_width(published: int, side: int) -> int:
    """An odd width, at an image size of `side`, for a width that is meant for 256 pixels."""
    return 2 * round((published * side / PUBLISHED_SIDE - 1) / 2) + 1 if published * side > PUBLISHED_SIDE else 1


def _bytes(images: Pixels) -> Images:
    return (images * 255).round().to(torch.uint8).cpu()
