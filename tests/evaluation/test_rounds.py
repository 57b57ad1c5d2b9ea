import pytest
import torch

from everycause.data.erasures import ValidationErasures
from everycause.data.sources import DataParams, open_split
from everycause.evaluation.completeness import completeness_score, profile
from everycause.evaluation.faithfulness import validation_causes
from everycause.models import Classifier
from everycause.tuning.trial import ValidationJudge
from tests.conftest import make_classifier


@pytest.fixture
def known(data_params: DataParams) -> Classifier:
    split = open_split(data_params, "validation", 1)
    made = make_classifier(classes=split.num_classes, size=split.image_size)
    made.class_names = split.class_names
    return made


def test_erasures_held_in_memory_are_those_that_are_rendered_anew(data_params: DataParams) -> None:
    held, anew = (
        ValidationErasures(data_params, 1),
        ValidationErasures(data_params.model_copy(update={"memory_mib": 0}), 1),
    )
    list(held)
    for one, other in zip(held, anew, strict=True):
        assert (
            one.parts == other.parts and torch.equal(one.images, other.images) and torch.equal(one.labels, other.labels)
        )
    assert len(list(held)) == len(list(anew)) == 2**held.code.length
    assert next(iter(held)).images is next(iter(held)).images


def test_completeness_is_the_area_of_accuracies_counted_image_by_image(
    data_params: DataParams, known: Classifier
) -> None:
    erasures = ValidationErasures(data_params, 1)
    with torch.no_grad():
        accuracies = {}
        for parts, images, labels in erasures:
            right = []
            for image, label in zip(images, labels, strict=True):
                pixels = (
                    image[None].float() / 255 - torch.tensor(known.statistics.mean)[:, None, None]
                ) / torch.tensor(known.statistics.standard_deviation)[:, None, None]
                right.append(known(pixels).argmax() == label)
            accuracies[parts] = sum(map(float, right)) / len(right)
    expected = completeness_score(profile(accuracies, erasures.code), erasures.code.num_classes)
    measured = validation_causes(known, erasures)["completeness"]
    assert measured == pytest.approx(expected, abs=1e-9)
    judge = ValidationJudge(data_params, open_split(data_params, "validation", 1), 1, ["validation completeness"])
    assert judge.measures(known)["validation completeness"] == measured and set(judge.measures(known)) == set(
        judge.names
    )


def test_a_glance_at_every_image_is_the_measure_and_at_some_of_them_is_of_these_alone(
    data_params: DataParams, known: Classifier
) -> None:
    erasures = ValidationErasures(data_params, 1)
    assert validation_causes(known, erasures, every=1) == validation_causes(known, erasures)
    judge = ValidationJudge(data_params, open_split(data_params, "validation", 1), 1, ["validation completeness"])
    assert (
        judge.quick_value(known, "validation completeness", 0.9)
        == validation_causes(known, erasures, every=4)["completeness"]
    )
    assert judge.quick_value(known, "validation accuracy", 0.9) == 0.9


def test_data_whose_parts_nobody_knows_have_no_completeness(data_params: DataParams) -> None:
    photos = data_params.model_copy(update={"source": "folder"})
    judge = ValidationJudge(photos, open_split(data_params, "validation", 1), 1, ["validation accuracy"])
    assert judge.names == ["validation accuracy"]
    with pytest.raises(ValueError, match="needs data.source codebirds: set tuning.objectives"):
        ValidationJudge(photos, open_split(data_params, "validation", 1), 1, ["validation completeness"])
