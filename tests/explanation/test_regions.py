import numpy as np
import pytest
import torch

from everycause.explanation.regions import MaskedImages, grid, is_shared, partitions, random_sets, superpixels


def some_images(count: int = 3, size: int = 20) -> torch.Tensor:
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("kind", ("grid", "slico"))
@pytest.mark.parametrize("with_baseline", (False, True))
def test_masked_images_are_composed_pixel_by_pixel(kind: str, with_baseline: bool) -> None:
    raw = some_images()
    images, baseline = raw.float(), raw.flip(0).float() if with_baseline else None
    masking = MaskedImages(images, partitions(kind, raw, 9), 9, is_shared(kind), baseline)
    owner = torch.tensor([2, 0, 0, 1])
    kept = torch.rand(4, 9, generator=torch.Generator().manual_seed(1))
    shown = masking.composed(owner, kept)
    for row, image in enumerate(owner.tolist()):
        partition = masking.partition[0 if kind == "grid" else image]
        for y, x in ((0, 0), (7, 13), (19, 19)):
            weight = kept[row, partition[y, x]]
            other = baseline[image, :, y, x] if baseline is not None else 0.0
            assert torch.allclose(
                shown[row, :, y, x], images[image, :, y, x] * weight + other * (1 - weight), rtol=1e-4, atol=1e-3
            )
    pixels = torch.rand(4, 20, 20, generator=torch.Generator().manual_seed(2))
    sums = masking.summed_over_regions(owner, pixels)
    for row, image in enumerate(owner.tolist()):
        partition = masking.partition[0 if kind == "grid" else image]
        for region in range(9):
            assert float(sums[row, region]) == pytest.approx(float(pixels[row][partition == region].sum()), abs=1e-3)
    assert torch.allclose(masking.areas.sum(dim=1), torch.ones(3))
    few = masking.rows(torch.tensor([2, 1]))
    assert torch.equal(few.composed(torch.tensor([0]), kept[:1]), masking.composed(torch.tensor([2]), kept[:1]))


@pytest.mark.parametrize("regions", (4, 9, 16, 50))
def test_superpixels_are_numbered_without_gaps_and_never_too_many(regions: int) -> None:
    for image in some_images(3, 24).permute(0, 2, 3, 1).numpy():
        labels = superpixels(image, regions)
        assert labels.shape == (24, 24) and labels.max() < regions
        assert np.array_equal(np.unique(labels), np.arange(labels.max() + 1))


@pytest.mark.parametrize(("size", "cells"), [(32, 4), (33, 4), (64, 6), (7, 7)])
def test_a_grid_is_a_partition_into_nearly_equal_rectangles(size: int, cells: int) -> None:
    partition = grid(size, cells)
    counts = partition.flatten().bincount()
    assert len(counts) == cells**2 and counts.min() >= (size // cells) ** 2 and counts.max() <= (size // cells + 1) ** 2
    for region in range(cells**2):
        rows, columns = (partition == region).nonzero(as_tuple=True)
        assert len(rows) == (rows.max() - rows.min() + 1) * (columns.max() - columns.min() + 1)


def test_random_sets_have_the_given_sizes_cover_evenly_and_use_only_what_exists() -> None:
    sizes = torch.arange(5).repeat(400)
    exists = torch.ones(2000, 16, dtype=torch.bool)
    sets = random_sets(sizes, exists, 0)
    assert torch.equal(sets.sum(dim=1), sizes) and torch.equal(sets, random_sets(sizes, exists, 0))
    assert sets.float().mean(dim=0).sub(2 / 16).abs().max() < 0.03
    exists[:, 10:] = False
    assert not random_sets(sizes, exists, 0)[:, 10:].any()


def test_regions_that_do_not_fit_are_one_sentence() -> None:
    with pytest.raises(ValueError, match="smaller than the region grid"):
        grid(8, 9)
    with pytest.raises(ValueError, match="a grid needs a square number, such as 9 or 16"):
        partitions("grid", some_images(), 10)
    with pytest.raises(ValueError, match="fewer pixels than regions"):
        partitions("slico", some_images(1, 8), 100)


def test_superpixels_too_many_are_joined_smallest_first_to_the_largest_neighbor(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = np.array([[0, 0, 1, 1], [0, 0, 2, 1], [3, 3, 1, 1], [3, 3, 1, 1]])
    monkeypatch.setattr("skimage.segmentation.slic", lambda *_arguments, **_options: made)
    image = np.zeros((4, 4, 3), np.uint8)
    three = np.where(made == 2, 1, np.where(made == 3, 2, made))
    assert np.array_equal(superpixels(image, 3), three)  # region 2 joins region 1, and the last number fills the gap
    assert np.array_equal(superpixels(image, 2), np.where(made == 3, 0, 1))  # then region 0 joins its largest neighbor
