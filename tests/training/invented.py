"""Masks, filters and recipes made up for the tests of training."""

import torch

from everycause.data.sources import DataParams
from everycause.data.split import AugmentationParams, Split
from everycause.explanation.filters import FilterBank
from everycause.explanation.heads import FilterHeads
from everycause.explanation.masks import Masks
from everycause.explanation.regions import grid
from everycause.training.background import BackgroundParams
from everycause.training.fit import FitParams, OptimizerParams
from everycause.training.loss import LossParams
from everycause.training.rows import Recipe, Upstream
from tests.conftest import make_classifier
from tests.explanation.searching import PARAMS as MASKS

PARAMS = FitParams(
    epochs=2, batch_size=32, trainable=["all"], keep="last", augmentation=AugmentationParams(mirror=True, shift=2, rotation=0.0, shear=0.0, zoom=0.0),
    optimizer=OptimizerParams(name="adamw", schedule="one_cycle", learning_rate=1e-3, weight_decay=0.05, warmup=0.2),
)  # fmt: skip
BACKGROUND = BackgroundParams(source="bank", source_classes="any_class", share=0.5, augment_rate=1.0)
WEIGHTS = LossParams(lambda_augment=1.0, lambda_mc=1e-3, lambda_nonmc=1e-4, surrogate="sigmoid_threshold")


def invented_masks(split: Split, count: int = 40) -> Masks:
    """Sets of two and three regions of a 4 × 4 grid; three of four images flip."""
    generator = torch.Generator().manual_seed(0)
    order = torch.rand(count, 16, generator=generator).argsort(dim=1)[:, :3]
    order[: count // 2, 2] = -1
    flipped = torch.arange(count) % 4 != 0
    return Masks(
        torch.arange(count), order, flipped, torch.zeros(count, dtype=torch.int64), torch.rand(count, 2), torch.rand(count, 2),
        torch.rand(count, 16, generator=generator), torch.full((count, 16), 1 / 16), torch.full((count,), 10), grid(split.image_size, 4)[None],
        torch.tensor([count, 0, 0]),
    )  # fmt: skip


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


def invented_upstream(split: Split) -> Upstream:
    """An untrained base with invented explanations."""
    return Upstream(make_classifier(), invented_bank(), invented_masks(split), split)


def recipe(data: DataParams, weights: LossParams = WEIGHTS, background: BackgroundParams = BACKGROUND) -> Recipe:
    """The settings of the tests."""
    return Recipe(data, MASKS, background, weights, 0.0, 1)
