"""Objects in scenes of other images."""

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from everycause.data.split import Split
from everycause.models import Classifier
from everycause.training.exchange import (
    MOST_DISCS,
    ExchangeParams,
    ObjectExchange,
    discs,
    emptied,
    exchange,
    packed_pixels,
    unpacked,
)
from tests.training.invented import EXCHANGE


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def changed(**values: object) -> ExchangeParams:
    return ExchangeParams(**{**EXCHANGE.model_dump(), **values})


@pytest.mark.parametrize("side", [8, 9, 31])
def test_packed_pixels_come_back(side: int) -> None:
    pixels = torch.rand(3, side, side, generator=generator()) < 0.4
    packed = packed_pixels(pixels)
    assert packed.shape == (3, -(-(side**2) // 8)) and torch.equal(unpacked(packed, side), pixels)


def test_discs_cover_the_drawn_share_of_the_object_and_hardly_more() -> None:
    objects = torch.zeros(40, 64, 64, dtype=torch.bool)
    objects[:, 10:50, 20:45] = True
    params = changed(removed=[0.4, 0.4], radius=[0.05, 0.08])
    share = (discs(objects, params, generator()) & objects).sum(dim=(1, 2)) / objects[0].sum()
    largest = 3.15 * (0.08 * 64) ** 2 / float(objects[0].sum())
    assert share.max() < 0.4 + largest and (share >= 0.4).all()


def test_nothing_or_all_of_it_may_go() -> None:
    objects = torch.rand(5, 16, 16, generator=generator()) < 0.5
    assert not discs(objects, changed(removed=[0.0, 0.0]), generator()).any()
    everything = discs(objects, changed(removed=[1.0, 1.0], radius=[1.0, 1.0]), generator())
    assert (everything | ~objects).all()


def test_a_center_is_a_pixel_of_the_object_and_no_more_discs_come_than_there_are() -> None:
    objects = torch.zeros(1, 64, 64, dtype=torch.bool)
    objects[0, 30, 40] = True
    covered = discs(objects, changed(removed=[0.5, 0.5], radius=[0.05, 0.05]), generator())
    rows, columns = covered[0].nonzero().T
    assert covered[0, 30, 40] and (rows - 30).abs().max() <= 3 and (columns - 40).abs().max() <= 3
    whole = torch.ones(1, 64, 64, dtype=torch.bool)
    covered = discs(whole, changed(removed=[1.0, 1.0], radius=[0.02, 0.02]), generator())
    assert 0 < covered.sum() <= MOST_DISCS * 9


def test_an_emptied_scene_keeps_the_rest_and_shows_nothing_of_the_object() -> None:
    images = torch.full((2, 3, 32, 32), 100, dtype=torch.uint8)
    objects = torch.zeros(2, 32, 32, dtype=torch.bool)
    objects[:, 8:20, 8:20] = True
    images[:, :, 8:20, 8:20] = 250
    found = emptied(images, objects, generator())
    inside = found.permute(0, 2, 3, 1)[objects].float()
    assert torch.equal(found.permute(0, 2, 3, 1)[~objects], images.permute(0, 2, 3, 1)[~objects])
    assert inside.mean() == pytest.approx(100, abs=1) and 4 < inside.std() < 8


def test_every_pixel_is_the_objects_own_or_of_an_emptied_scene(train: Split, classifier: Classifier) -> None:
    made = exchange(classifier, train, changed(removed=[0.0, 0.0]), 1.0, seed=0)
    index = torch.arange(12)
    images, labels = train.read(index.numpy()), train.labels[index]
    shown, same = made.composed(index, images, labels, generator())
    whole = unpacked(made.objects[index], train.image_size)
    assert torch.equal(same, labels) and made.covers(0)
    assert torch.equal(torch.where(whole[:, None], shown, 0), torch.where(whole[:, None], images, 0))
    for image, kept in zip(shown, whole, strict=True):
        assert any(torch.equal(image[:, ~kept], scene[:, ~kept]) for scene in made.scenes)


def test_what_is_removed_shows_the_other_scene_too(train: Split, classifier: Classifier) -> None:
    made = exchange(classifier, train, changed(removed=[1.0, 1.0], radius=[1.0, 1.0]), 1.0, seed=0)
    index = torch.arange(6)
    shown, _ = made.composed(index, train.read(index.numpy()), train.labels[index], generator())
    assert all(any(torch.equal(image, scene) for scene in made.scenes) for image in shown)


def test_a_seed_gives_the_same_images_again(train: Split, classifier: Classifier) -> None:
    index = torch.arange(8)
    images, labels = train.read(index.numpy()), train.labels[index]

    def shown(seed: int) -> torch.Tensor:
        made: ObjectExchange = exchange(classifier, train, EXCHANGE, 1.0, seed)
        return made.composed(index, images, labels, generator(3))[0]

    assert torch.equal(shown(1), shown(1)) and not torch.equal(shown(1), shown(2))
    empty = torch.zeros(0, dtype=torch.int64)
    made = exchange(classifier, train, EXCHANGE, 1.0, 0)
    assert len(made.composed(empty, images[:0], labels[:0], generator())[0]) == 0


@pytest.mark.parametrize(
    "values", [{"removed": [0.5, 0.2]}, {"radius": [0.1, 1.2]}, {"removed": [0.1]}, {"radius": [0, 0.0]}]
)
def test_a_range_that_is_none_is_refused(values: dict) -> None:
    with pytest.raises(ValidationError):
        changed(**values)


def test_few_images_at_once_are_passed_backward(
    train: Split, classifier: Classifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    monkeypatch.setattr("everycause.training.exchange.batch_size", lambda _classifier: 512)
    monkeypatch.setattr(
        "everycause.training.exchange.objects",
        lambda _classifier, images, *_: sizes.append(len(images)) or images[:, 0] > 100,
    )
    exchange(classifier, train.subset(np.arange(len(train)).repeat(130 // len(train) + 1)), EXCHANGE, 1.0, 0)
    assert max(sizes) == 64 and sum(sizes) >= 130
