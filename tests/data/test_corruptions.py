from itertools import pairwise

import numpy as np
import pytest
import torch

from everycause.data.corruptions import CORRUPTIONS, corrupted
from everycause.data.split import Split


def distortion(split: Split, name: str, severity: int, index: np.ndarray) -> float:
    clean, changed = split.read(index).float(), corrupted(split, name, severity).read(index).float()
    return float((clean - changed).square().mean().sqrt())


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_distortion_grows_with_severity_and_is_never_nothing(train: Split, name: str) -> None:
    index = np.arange(24)
    errors = [distortion(train, name, severity, index) for severity in range(1, 6)]
    assert errors[0] > 0.5 and all(first <= second + 0.3 for first, second in pairwise(errors))


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_a_corrupted_image_is_the_same_however_it_is_read(train: Split, name: str) -> None:
    split = corrupted(train, name, 3)
    together = split.read(np.arange(10))
    assert torch.equal(split.read(np.array([8, 2])), together[[8, 2]])
    assert together.dtype == torch.uint8 and together.shape == train.read(np.arange(10)).shape


def test_gaussian_noise_has_the_deviation_of_its_table(train: Split) -> None:
    gray = Split("gray", train.labels, train.class_names, 32, lambda index: torch.full((len(index), 3, 32, 32), 128, dtype=torch.uint8), "")
    for severity, deviation in enumerate((0.04, 0.08, 0.12, 0.15, 0.18), 1):
        assert corrupted(gray, "gaussian_noise", severity).read(np.arange(8)).float().std() / 255 == pytest.approx(deviation, rel=0.03)


@pytest.mark.parametrize(("name", "severity", "message"), [("rain", 1, "not a corruption"), ("jpeg", 6, "severity 6")])
def test_unknown_corruptions_are_refused(train: Split, name: str, severity: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        corrupted(train, name, severity)
