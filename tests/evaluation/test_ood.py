"""One pass over all views: what is stored, what the contact sheet shows, and data that do not fit the model."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from everycause.artifacts import load_tensors
from everycause.data.shifts import views
from everycause.data.sources import DataParams, open_split
from everycause.data.split import Split, View
from everycause.evaluation.detection import DetectionParams, Explained, detect
from everycause.evaluation.ood import PICTURES, SHOWN, ContactSheet, data_description, evaluate, predictions
from everycause.evaluation.predictions import answers
from everycause.explanation.filters import FilterParams
from everycause.inference import logits_of
from everycause.models import Classifier
from tests.conftest import make_classifier
from tests.training.invented import invented_bank

DETECTION = DetectionParams(accept_above=0.9, agreement="recall", candidates=5)


@pytest.fixture
def fitting(train: Split) -> Classifier:
    """An untrained model of the classes of the smoke profile."""
    made = make_classifier(classes=train.num_classes, size=train.image_size)
    made.class_names = train.class_names
    return made


def test_the_folded_network_gives_the_logits_of_the_stored_one(fitting: Classifier, data_params: DataParams) -> None:
    stored = evaluate(fitting, views(data_params, ["gaussian_noise"], [3], 1))
    assert next(iter(stored.views)) == "test" and list(stored.views)[-1] == "corruptions/gaussian_noise/3"
    test = open_split(data_params, "test", 1)
    found, whole = stored.views["test"], answers(logits_of(fitting, test), test.labels)
    assert torch.equal(found.predicted, whole.predicted) and torch.equal(found.rank, whole.rank)
    assert torch.allclose(found.confidence, whole.confidence, atol=1e-4)
    assert torch.equal(found.labels, test.labels) and stored.conforms is not None


def test_answers_do_not_depend_on_the_batches_in_which_logits_come() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(20, 6, generator=generator), torch.arange(20) % 6
    split = replace(named("test", 0).split, labels=labels, class_names=tuple("abcdef"))
    view = View(split, compared=torch.tensor([1, 4]))
    whole, some = (predictions(iter([view]), lambda view, size=size: iter(logits.split(size))) for size in (20, 7))
    for kind in whole.views["test"]._fields:
        assert torch.equal(getattr(whole.views["test"], kind), getattr(some.views["test"], kind))
    assert torch.equal(whole.compared, some.compared) and set(whole.compared.tolist()) == {1, 4}
    assert torch.equal(whole.compared, torch.tensor([1, 4])[logits[:, [1, 4]].argmax(dim=1)])


def other_size(split: Split) -> Split:
    return replace(split, image_size=64, read=lambda index: torch.zeros(len(index), 3, 64, 64, dtype=torch.uint8))


def other_names(split: Split) -> Split:
    return replace(split, class_names=("heron", *split.class_names[1:]))


def more_classes(split: Split) -> Split:
    return replace(split, class_names=(*split.class_names, "heron"))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (other_size, "made for images of 32 pixels, and those of 'train' have 64"),
        (other_names, "knows 4 classes, and they are not the 4 of 'train', such as 'heron'"),
        (more_classes, "knows 4 classes, and they are not the 5 of 'train', such as 'heron'"),
    ],
)
def test_data_that_the_model_was_not_made_for_are_one_sentence_that_names_both(
    fitting: Classifier, train: Split, raw: dict, changed: Callable[[Split], Split], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        evaluate(fitting, iter([View(changed(train))]))
    filters = FilterParams(**raw["filters"])
    explained = Explained(fitting, invented_bank(), changed(train), train)
    with pytest.raises(ValueError, match=message):
        detect(explained, iter([View(train)]), filters, DETECTION, 0)


def named(name: str, number: int) -> View:
    shown = torch.full((20, 3, 8, 8), number, dtype=torch.uint8)
    return View(Split(name, torch.zeros(20, dtype=torch.int64), ("a",), 8, lambda index: shown[index], ""))


def test_the_contact_sheet_shows_an_erasure_per_size_and_the_middle_severity(tmp_path: Path) -> None:
    names = [
        "test",
        "erasures/0",
        "erasures/1",
        "erasures/0-1",
        "corruptions/fog/1",
        "corruptions/fog/3",
        "art_painting",
    ]
    sheet = ContactSheet(named("train", 99).split, [1, 3, 5])
    for number, name in enumerate(names):
        sheet.see(named(name, number))
    sheet.save(tmp_path)
    tensors, description = load_tensors(tmp_path / PICTURES, "evaluate_ood")
    expected = {
        "train": 99,
        "test": 0,
        "erasures: 1 part": 1,
        "erasures: 2 parts": 3,
        "corruptions: fog": 5,
        "art painting": 6,
    }
    assert description["names"] == list(expected)
    for line, number in zip(sorted(tensors), expected.values(), strict=True):
        assert tensors[line].shape == (SHOWN, 3, 8, 8) and set(tensors[line].unique().tolist()) == {number}


def test_the_description_of_rendered_data_holds_the_code_and_its_parts(data_params: DataParams, train: Split) -> None:
    described = data_description(data_params, train)
    assert described["class_names"] == list(train.class_names) and len(described["cues"]) == 3
    assert np.array_equal(described["code"]["words"], data_params.code.words) and described["code"]["distance"] == 2


def test_photographs_have_no_code(raw: dict, train: Split) -> None:
    photographs = DataParams(**raw["data"] | {"source": "folder"})
    described = data_description(photographs, train)
    assert described["code"] is None and described["cues"] == [] and described["image_size"] == 32
