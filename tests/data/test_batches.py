import numpy as np
import pytest
import torch

from everycause.data.images import normalized
from everycause.data.split import Split, batches, statistics
from everycause.training.steps import AugmentationParams, Geometry, draw_geometry, transformed


def random_images(count: int = 6, size: int = 9) -> torch.Tensor:
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_statistics_are_those_of_numpy_whatever_the_chunk(train: Split) -> None:
    images = train.all().numpy() / 255
    for chunk in (7, 640):
        found = statistics(train, chunk)
        assert np.allclose(found.mean, images.mean(axis=(0, 2, 3))) and np.allclose(
            found.standard_deviation, images.std(axis=(0, 2, 3))
        )
    assert statistics(train, 7) == statistics(train, 640)


STRAIGHT = torch.eye(2).expand(6, 2, 2)


def augmentation(**changes: float) -> AugmentationParams:
    return AugmentationParams(
        **{
            "mirror": True,
            "shift": 0,
            "rotation": 0.0,
            "shear": 0.0,
            "zoom": 0.0,
            "resized_crop": 0.0,
            "color_jitter": 0.0,
        }
        | changes
    )


def test_the_mean_color_is_zero_after_normalization(train: Split) -> None:
    images = normalized(train.all(), statistics(train), torch.device("cpu"))
    assert images.mean(dim=(0, 2, 3)).abs().max() < 1e-4
    assert images.std(dim=(0, 2, 3)).sub(1).abs().max() < 1e-3


def test_transformed_images_are_those_of_a_slow_reference() -> None:
    images = random_images()
    geometry = draw_geometry(len(images), augmentation(shift=3), torch.Generator().manual_seed(1))
    fast = transformed(images, geometry)
    for image, mirror, down, right, result in zip(images, *geometry[:3], fast, strict=True):
        picture = image.flip(-1) if mirror else image
        padded = torch.nn.functional.pad(picture.float()[None], (3, 3, 3, 3), mode="reflect")[0].to(torch.uint8)
        horizontal = -right if mirror else right  # the shift is applied before the mirror
        assert torch.equal(
            result,
            padded[:, 3 - down : 12 - down, 3 + horizontal : 12 + horizontal]
            if mirror
            else padded[:, 3 - down : 12 - down, 3 - right : 12 - right],
        )


def test_no_shift_and_no_mirror_is_the_identity_and_two_mirrors_too() -> None:
    images, none = random_images(), torch.zeros(6, dtype=torch.int64)
    assert torch.equal(transformed(images, Geometry(none, none, none, STRAIGHT)), images)
    mirror = Geometry(none + 1, none, none, STRAIGHT)
    assert torch.equal(transformed(images, mirror), images.flip(-1))
    assert torch.equal(transformed(transformed(images, mirror), mirror), images)


@pytest.mark.parametrize("quarters", [1, 2, 3])
def test_a_quarter_turn_is_exact(quarters: int) -> None:
    images, none = random_images(), torch.zeros(6, dtype=torch.int64)
    turn = torch.linalg.matrix_power(torch.tensor([[0.0, -1.0], [1.0, 0.0]]), quarters).expand(6, 2, 2)
    assert torch.equal(transformed(images, Geometry(none, none, none, turn)), images.rot90(quarters, dims=(2, 3)))


def test_affine_draws_stay_within_their_bounds_and_compose_as_written() -> None:
    params = augmentation(rotation=15.0, shear=5.0, zoom=0.2)
    geometry = draw_geometry(500, params, torch.Generator().manual_seed(0))
    scale = geometry.affine.det().rsqrt()
    assert 0.8 <= scale.min() < 0.83 and 1.17 < scale.max() <= 1.2
    angle = torch.rad2deg(torch.atan2(geometry.affine[:, 1, 0], geometry.affine[:, 0, 0]))
    assert 14 < angle.abs().max() <= 15.01
    shear = torch.linalg.solve(
        torch.linalg.qr(geometry.affine).R[:, 0, 0][:, None, None] * torch.eye(2), torch.linalg.qr(geometry.affine).R
    )[:, 0, 1].abs()
    assert float(torch.rad2deg(shear.atan()).max()) <= 5.01
    again = draw_geometry(500, params, torch.Generator().manual_seed(0))
    assert torch.equal(again.affine, geometry.affine) and geometry.rows(torch.tensor([3])).affine.shape == (1, 2, 2)


def test_angle_shear_and_zoom_are_drawn_independently() -> None:
    params = augmentation(rotation=15.0, shear=5.0, zoom=0.2)
    affine = draw_geometry(2000, params, torch.Generator().manual_seed(0)).affine.double()
    triangle = torch.linalg.qr(affine).R
    angle, scale = torch.atan2(affine[:, 1, 0], affine[:, 0, 0]), affine.det()
    shear = triangle[:, 0, 1] / triangle[:, 0, 0]
    related = torch.corrcoef(torch.stack([angle, shear, scale])) - torch.eye(3)
    assert float(related.abs().max()) < 0.1  # chance: 0.022 standard deviation


def test_without_affine_bounds_the_draws_are_those_of_mirror_and_shift_alone() -> None:
    plain, turned = (
        draw_geometry(9, augmentation(shift=4, rotation=angle), torch.Generator().manual_seed(5))
        for angle in (0.0, 10.0)
    )
    assert torch.equal(plain.mirror, turned.mirror) and torch.equal(plain.right, turned.right)
    assert not draw_geometry(50, augmentation(mirror=False), torch.Generator().manual_seed(5)).mirror.any()


def test_batches_cover_a_split_once_and_in_the_given_order(train: Split) -> None:
    order = np.random.default_rng(0).permutation(len(train))
    seen = list(batches(train, 100, order))
    assert torch.equal(torch.cat([batch.index for batch in seen]), torch.from_numpy(order))
    assert torch.equal(torch.cat([batch.labels for batch in seen]), train.labels[order])
    assert torch.equal(seen[0].images, train.read(order[:100]))


def test_a_split_larger_than_memory_is_read_again_and_is_the_same(train: Split) -> None:
    streamed = Split(train.name, train.labels, train.class_names, train.image_size, train.read, train.identity)
    assert streamed.kept_in_memory(0) is streamed
    held = streamed.kept_in_memory(100)
    assert torch.equal(held.read(np.array([5, 2])), streamed.read(np.array([5, 2])))


def test_an_empty_split_is_refused() -> None:
    with pytest.raises(ValueError, match="has no images"):
        Split("train", torch.zeros(0, dtype=torch.int64), ("a", "b"), 8, lambda index: random_images(), "")


def test_a_zoom_of_two_shows_the_center_magnified() -> None:
    ramp = torch.arange(0, 160, 10, dtype=torch.uint8).expand(1, 3, 16, 16)
    none = torch.zeros(1, dtype=torch.int64)
    zoomed = transformed(ramp, Geometry(none, none, none, torch.eye(2)[None] / 2))
    assert torch.allclose(zoomed[0, 0, 8].float(), torch.linspace(37.5, 112.5, 16), atol=1)


@pytest.mark.parametrize("shift", [8, 9, 16, 1000])
def test_shifts_beyond_the_image_are_folded_back_as_often_as_needed(shift: int) -> None:
    images, none = random_images(), torch.zeros(6, dtype=torch.int64)
    once = transformed(images, Geometry(none, none + shift % 16, none, STRAIGHT))
    assert torch.equal(transformed(images, Geometry(none, none + shift, none, STRAIGHT)), once)


def test_a_subset_has_an_identity_of_its_own(train: Split) -> None:
    found = [train.identity, *(train.subset(np.array(index)).identity for index in ([0, 1], [1, 0], [0, 2], [0, 1]))]
    assert len(set(found)) == 4 and found[1] == found[4]
