"""Counterfactual images with the default params: minutes for 64 images, memory, and what steering adds to ACE.

The prior is newly drawn: what it costs does not depend on its weights.
"""

import resource
import time
from collections.abc import Iterator
from statistics import median

import torch
from torch import Tensor

from benchmarks.subject import RAW, Subject, subject
from everycause.explanation.counterfactual_images import training_features
from everycause.explanation.latent_factors import FactorModel
from everycause.explanation.prior import Denoiser, DiffusionPrior, PriorParams
from everycause.explanation.prior_training import training_scheduler
from everycause.explanation.steering import Attack, CounterfactualParams, counterfactuals

IMAGES, PAIRS, FEW = 64, 5, 2
"""Images of the whole run; pairs of short runs for the ratio, and steps of each."""


def attacks(model: Subject, params: CounterfactualParams) -> dict[str, Attack]:
    """ACE and CECAS on one classifier and one prior."""
    device = model.classifier.device
    denoiser = Denoiser(PriorParams(**RAW["prior"]), model.train.image_size).to(device).eval().requires_grad_(False)
    prior = DiffusionPrior(denoiser, training_scheduler(), params.chain, params.tau, params.eta)
    features = training_features(model.classifier, model.train.subset(torch.arange(64).numpy()), None)
    classes = model.train.num_classes
    factors = FactorModel(features.features.shape[1], classes, params.factors).to(device).eval().requires_grad_(False)
    return {
        "ace": Attack(model.classifier, prior, params),
        "cecas": Attack(model.classifier, prior, params, factors, 1.0),
    }


def seconds(attack: Attack, images: Tensor, targets: Tensor) -> float:
    """Duration of one run, a batch after the other."""
    begin = time.perf_counter()
    for rows in torch.arange(len(images)).split(attack.params.batch_size):
        counterfactuals(attack, images[rows], targets[rows], rows.tolist())
    if attack.classifier.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - begin


def measures() -> Iterator[tuple[str, float]]:
    """Duration, memory and ratio."""
    model, params = subject(), CounterfactualParams(**RAW["counterfactuals"])
    images = model.train.read(torch.arange(IMAGES).numpy())
    targets = (model.train.labels[:IMAGES] + 1) % model.train.num_classes
    short = attacks(model, params.model_copy(update={"iterations": FEW}))
    some = slice(0, params.batch_size)
    ratios = []
    for _ in range(PAIRS + 1):
        ratios.append(
            seconds(short["cecas"], images[some], targets[some]) / seconds(short["ace"], images[some], targets[some])
        )
    yield "steering.cecas_over_ace", median(ratios[1:])
    whole = attacks(model, params)["ace"]
    yield "steering.minutes_64", seconds(whole, images, targets) / 60
    yield "steering.peak_gib", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
