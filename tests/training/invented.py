"""Masks, filters and recipes made up for the tests of training."""

from dataclasses import replace

import torch

from everycause.data.sources import DataParams
from everycause.data.split import Split
from everycause.explanation.filters import FilterBank
from everycause.explanation.heads import FilterHeads
from everycause.explanation.masks import Masks
from everycause.explanation.regions import grid
from everycause.training.background import BackgroundParams
from everycause.training.counterfactuals import Recipe, Upstream
from everycause.training.exchange import ExchangeParams
from everycause.training.fit import FitParams
from everycause.training.loss import LossParams
from everycause.training.optimizer import OptimizerParams
from everycause.training.rounds import RoundsParams
from everycause.training.steps import AugmentationParams
from tests.conftest import make_classifier
from tests.explanation.searching import PARAMS as MASKS

AUGMENTATION = AugmentationParams(
    mirror=True, shift=2, rotation=0.0, shear=0.0, zoom=0.0, resized_crop=0.0, color_jitter=0.0
)
OPTIMIZER = OptimizerParams(
    name="adamw", schedule="one_cycle", learning_rate=1e-3, weight_decay=0.05, warmup=0.2, layer_decay=1.0
)
PARAMS = FitParams(
    epochs=2,
    batch_size=32,
    trainable=["all"],
    keep="last",
    label_smoothing=0.0,
    average=0.0,
    frozen_statistics=False,
    precision="float32",
    augmentation=AUGMENTATION,
    optimizer=OPTIMIZER,
)
ROUNDS = RoundsParams(rounds=2, images=12, growth=0.0)
BACKGROUND = BackgroundParams(source="bank", source_classes="any_class", share=0.5, augment_rate=1.0)
EXCHANGE = ExchangeParams(object_share=0.3, projections=2, removed=[0.1, 0.6], radius=[0.1, 0.2])
WEIGHTS = LossParams(lambda_augment=1.0, lambda_mc=1e-3, lambda_nonmc=1e-4, surrogate="sigmoid_threshold")


def invented_masks(split: Split, count: int = 40) -> Masks:
    """Sets of two and three regions of a 4 × 4 grid; three of four images flip."""
    generator = torch.Generator().manual_seed(0)
    order = torch.rand(count, 16, generator=generator).argsort(dim=1)[:, :3]
    order[: count // 2, 2] = -1
    flipped = torch.arange(count) % 4 != 0
    return Masks(
        index=torch.arange(count),
        order=order,
        flipped=flipped,
        runner_up=torch.zeros(count, dtype=torch.int64),
        before=torch.rand(count, 2),
        after=torch.rand(count, 2),
        effect=torch.rand(count, 16, generator=generator),
        areas=torch.full((count, 16), 1 / 16),
        forwards=torch.full((count,), 10),
        partition=grid(split.image_size, 4)[None],
        shared=True,
        selection_counts=torch.tensor([count, 0, 0]),
    )


def invented_bank() -> FilterBank:
    """Random counts."""
    histogram = torch.randint(0, 3, (4, 96), generator=torch.Generator().manual_seed(0))
    return FilterBank(
        histogram,
        histogram.float(),
        torch.full((4,), 3),
        FilterHeads(torch.zeros(4, 96, 96), torch.zeros(4, 96)),
        "model",
    )


def known(split: Split) -> Split:
    """A split whose classes have the names that the classifiers of the tests know."""
    return replace(split, class_names=tuple(f"class-{number}" for number in range(split.num_classes)))


def invented_upstream(split: Split, validation: Split | None = None, masks: Masks | None = None) -> Upstream:
    """An untrained base with invented explanations."""
    found = invented_masks(split) if masks is None else masks
    return Upstream(
        base=make_classifier(),
        model="model",
        train=split,
        validation=split if validation is None else validation,
        open_masks=lambda: found,
        open_filters=invented_bank,
        watch_filters=True,
    )


def recipe(data: DataParams, weights: LossParams = WEIGHTS, background: BackgroundParams = BACKGROUND) -> Recipe:
    """The settings of the tests."""
    return Recipe(data, MASKS, background, EXCHANGE, weights, 0.0, 1)
