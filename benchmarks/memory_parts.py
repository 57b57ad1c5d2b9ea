"""One part of the pipeline alone, for bench_memory: `python -m benchmarks.memory_parts PART SIZE`."""

import sys
import tempfile
from collections.abc import Iterator
from math import isqrt
from pathlib import Path

import numpy as np
import torch

from everycause.data.split import Split, View
from everycause.evaluation.ood import predictions
from everycause.explanation.filter_heads import StoredHeads
from everycause.explanation.heads import HeadParams, LastLayer, head_blocks
from everycause.explanation.masks import FILE, Masks
from everycause.explanation.regions import grid
from everycause.training.background import BackgroundParams, background_bank

SIDE, REGIONS = 112, 49


def answers(images: int) -> None:
    """What logits of 1,000 classes say of so many images on four views, written and read back."""
    labels = torch.arange(images) % 1000
    names = tuple(str(number) for number in range(1000))

    def logits(_view: View) -> Iterator[torch.Tensor]:
        generator = torch.Generator().manual_seed(0)
        for rows in labels.split(512):
            yield torch.randn(len(rows), 1000, generator=generator)

    splits = (Split(f"view/{number}", labels, names, 8, unread, "") for number in range(4))
    stored = predictions((View(split) for split in splits), logits)
    with tempfile.TemporaryDirectory() as folder:
        stored.save(Path(folder))
        type(stored).load(Path(folder)).correctness("view")


def heads(classes: int) -> None:
    """Heads of so many classes and 512 filters, trained for one epoch, written, and used on an image of each class."""
    generator = torch.Generator().manual_seed(0)
    activations = torch.rand(16, 512, generator=generator)
    head = LastLayer(torch.randn(classes, 512, generator=generator), torch.zeros(classes))
    params = HeadParams(sparsity=2.0, learning_rate=1e-3, epochs=1, batch_size=16)
    with tempfile.TemporaryDirectory() as folder:
        blocks = head_blocks(activations, torch.arange(16) % classes, head, params, 0)
        stored = StoredHeads.written(blocks, Path(folder), "model")
        stored.minimum_correct(torch.rand(classes, 512, generator=generator), torch.arange(classes))


def bank(images: int) -> None:
    """The background bank of so many searched images of 112 pixels, each with a partition of its own, from shards."""
    generator = torch.Generator().manual_seed(0)
    split = Split("train", torch.arange(images) % 10, tuple("abcdefghij"), SIDE, unread, "data")
    with tempfile.TemporaryDirectory() as folder:
        for number, index in enumerate(torch.arange(images).split(256)):
            searched(index, generator).save(Path(folder) / FILE.format(number), "model", "data")
        masks = Masks.load(Path(folder), "model", "data", images)
        params = BackgroundParams(source="bank", source_classes="any_class", share=0.6, augment_rate=1.0)
        background_bank(split, masks, params)


def searched(index: torch.Tensor, generator: torch.Generator) -> Masks:
    """Invented masks of some images."""
    count, cells = len(index), grid(SIDE, isqrt(REGIONS))
    return Masks(
        index=index,
        order=torch.randint(REGIONS, (count, 2), generator=generator),
        flipped=torch.ones(count, dtype=torch.bool),
        runner_up=torch.zeros(count, dtype=torch.int64),
        before=torch.rand(count, 2),
        after=torch.rand(count, 2),
        effect=torch.rand(count, REGIONS, generator=generator),
        areas=torch.full((count, REGIONS), 1 / REGIONS),
        forwards=torch.full((count,), 10),
        partition=torch.stack([cells.roll(int(row), dims=1) for row in index % 16]).to(torch.uint16),
        shared=False,
        selection_counts=torch.tensor([count, 0, 0]),
    )


def unread(index: np.ndarray) -> torch.Tensor:
    """Black images."""
    return torch.zeros(len(index), 3, SIDE, SIDE, dtype=torch.uint8)


if __name__ == "__main__":
    {"answers": answers, "heads": heads, "bank": bank}[sys.argv[1]](int(sys.argv[2]))
