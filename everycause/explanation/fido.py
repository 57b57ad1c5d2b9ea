"""FIDO: a keep-mask over the regions of an image, learned by gradient descent.

Each region has a probability of being removed, q = σ(θ). Masks are drawn from it, removed regions show an in-fill x̂,
and Adam minimizes over θ the expectation of

    log p(y)/(1 − p(y)) of x·(1 − r) + x̂·r   +   λ · 3136 · (removed share of the image)

so that the prediction is destroyed with little removed (the paper's smallest destroying region). Draws are relaxed so
that gradients pass through them: r = σ((θ + ε)/0.1) with logistic noise ε (the concrete distribution).

Paper: Chang et al., Explaining Image Classifiers by Counterfactual Generation, ICLR 2019 (arXiv 1807.08024).
"""

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import softplus
from torchvision.transforms.v2.functional import gaussian_blur

from everycause.explanation.objectives import OBJECTIVES
from everycause.explanation.objects import MEAN_SHARE, local_mean, odd
from everycause.explanation.ranking import Ranking, Request, ranked_by_score
from everycause.explanation.regions import MaskedImages, blur_widths
from everycause.explanation.scoring import GRADIENT
from everycause.shapes import Float, Int64

TEMPERATURE = 0.1
"""Of the relaxed draws, as published."""
PUBLISHED_CELLS = 56**2
"""Cells of the published mask, for which λ is given."""


def fido(request: Request) -> Ranking:
    """Regions by their learned probability of being removed; every gradient counts as three forward passes."""
    params, masking = request.fido, infilled(request.task.masking, request.fido.infill)
    at_once = max(1, request.scorer.batch_size // params.samples)
    everyone = torch.arange(len(request.index), device=masking.areas.device)
    learned = [_learned(request, masking, rows) for rows in everyone.split(at_once)]
    # log(1 + e^θ) orders as q does, is never negative, and does not round to 1
    return ranked_by_score(request.task, softplus(torch.cat(learned)), GRADIENT * params.steps * params.samples)


def infilled(masking: MaskedImages, infill: str) -> MaskedImages:
    """Images whose removed regions show an in-fill: `baseline`, `blur` or `local_mean`."""
    images = masking.images
    match infill:
        case "blur":
            return replace(masking, baseline=gaussian_blur(images, *blur_widths(images.shape[-1])))
        case "local_mean":
            return replace(masking, baseline=local_mean(images, odd(images.shape[-1] * MEAN_SHARE)))
    return masking


def _learned(request: Request, masking: MaskedImages, rows: Int64[Tensor, "images"]) -> Float[Tensor, "images regions"]:
    """The logits θ of some of the images, learned from θ = 0."""
    params, owner = request.fido, rows.repeat_interleave(request.fido.samples)
    shown, labels = masking.rows(owner), request.task.labels[owner]
    logits = torch.zeros_like(masking.areas[rows])
    optimizer = torch.optim.Adam([logits], lr=params.learning_rate)
    # a generator for each image: what it draws does not depend on the others
    generators = [torch.Generator().manual_seed(int(index)) for index in request.index[rows.to(request.index.device)]]
    for _ in range(params.steps):
        noise = torch.stack([logistic_noise(params.samples, masking.regions, one) for one in generators])
        logits.grad = gradient(request, shown, labels, logits, noise.to(logits.device))
        optimizer.step()
    return logits


def logistic_noise(samples: int, regions: int, generator: torch.Generator) -> Float[Tensor, "samples regions"]:
    """Standard logistic noise."""
    uniform = torch.rand(samples, regions, generator=generator).clamp(1e-6, 1 - 1e-6)
    return uniform.log() - (-uniform).log1p()


def gradient(
    request: Request,
    shown: MaskedImages,
    labels: Int64[Tensor, "draws"],
    logits: Float[Tensor, "images regions"],
    noise: Float[Tensor, "images samples regions"],
) -> Float[Tensor, "images regions"]:
    """The derivative of the loss by θ, averaged over the draws of each image.

    Args:
        request: Gives the network and λ.
        shown: The images, each as often as masks are drawn for it.
        labels: The predicted class for each of them.
        logits: θ.
        noise: ε of each draw.
    """
    removal = ((logits[:, None] + noise) / TEMPERATURE).sigmoid()
    deletion = OBJECTIVES["deletion"]  # the negative log-odds
    destroyed = request.scorer.gradients(shown, removal.flatten(0, 1), labels, labels, deletion)
    cost = request.fido.sparsity * PUBLISHED_CELLS * shown.areas
    by_removal = (cost - destroyed).unflatten(0, noise.shape[:2])
    return (by_removal * removal * (1 - removal) / TEMPERATURE).mean(dim=1)
