"""Which pixels move the features: against the whole Jacobian, written slowly."""

import pytest
import torch

from everycause.data.images import normalized
from everycause.explanation.objects import local_mean, object_pixels, objects, odd, sensitivity
from everycause.models import Classifier
from tests.conftest import make_classifier


@pytest.fixture
def classifier() -> Classifier:
    return make_classifier()


def images(count: int, side: int = 32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 3, side, side), generator=generator, dtype=torch.uint8)


def test_with_one_projection_for_each_feature_it_is_the_length_that_the_jacobian_gives(classifier: Classifier) -> None:
    given = images(1)
    pixels = normalized(given, classifier.statistics, classifier.device)
    change = local_mean(pixels, odd(32 / 3)) - pixels

    def features(inputs: torch.Tensor) -> torch.Tensor:
        return classifier.readout(inputs).activations[0]

    jacobian = torch.autograd.functional.jacobian(features, pixels)[:, 0]
    count, reach = len(jacobian), odd(32 / 13) // 2
    found = sensitivity(classifier, given, count**0.5 * torch.eye(count)[:, None])
    for row, column in ((10, 12), (16, 16), (25, 7)):
        window = torch.zeros(32, 32)
        window[row - reach : row + reach + 1, column - reach : column + reach + 1] = 1
        moved = (jacobian * (change[0] * window)).sum(dim=(1, 2, 3))
        assert found[0, row, column] == pytest.approx(float(moved.norm()), rel=1e-3)


def test_random_projections_come_close_to_it(classifier: Classifier) -> None:
    given = images(2)
    count = classifier.readout(normalized(given, classifier.statistics, classifier.device)).activations.shape[1]
    exact = sensitivity(classifier, given, (count**0.5 * torch.eye(count))[:, None].expand(-1, 2, -1))
    vectors = torch.randn(64, 2, count, generator=torch.Generator().manual_seed(0))
    correlation = torch.corrcoef(torch.stack([exact.flatten(), sensitivity(classifier, given, vectors).flatten()]))
    assert correlation[0, 1] > 0.9


def test_an_image_of_one_color_has_no_object(classifier: Classifier) -> None:
    plain = torch.full((1, 3, 32, 32), 77, dtype=torch.uint8)
    assert sensitivity(classifier, plain, torch.randn(2, 1, 96)).max() < 1e-4


def test_the_classes_do_not_matter_and_the_classifier_stays_as_it_is(classifier: Classifier) -> None:
    given = images(3)
    classifier.train()
    before = objects(classifier, given, 0.3, 2, torch.Generator().manual_seed(1))
    assert classifier.training and all(value.grad is None for value in classifier.parameters())
    head = classifier.network.get_classifier()
    with torch.no_grad():
        head.weight.copy_(head.weight.flip(0) * 3)
    assert torch.equal(objects(classifier, given, 0.3, 2, torch.Generator().manual_seed(1)), before)


@pytest.mark.parametrize("share", [1e-9, 0.25, 0.9])
def test_the_object_is_the_share_of_pixels_with_the_highest_values_and_their_neighbors(share: float) -> None:
    values = torch.rand(2, 16, 16, generator=torch.Generator().manual_seed(0))
    found = object_pixels(values, share)
    most = max(1, round(share * 256))
    for image, chosen in zip(values, found, strict=True):
        expected = torch.zeros(18, 18, dtype=torch.bool)
        for place in image.flatten().argsort(descending=True)[:most].tolist():
            row, column = place // 16, place % 16
            expected[row : row + 3, column : column + 3] = True
        assert torch.equal(chosen, expected[1:-1, 1:-1])


def test_odd_lengths() -> None:
    assert [odd(value) for value in (0.1, 1.9, 2.1, 4.9, 17.2, 21.3)] == [1, 1, 3, 5, 17, 21]
