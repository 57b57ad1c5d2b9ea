"""Measures of counterfactual images against slower ones, and the truth of Codebirds on images that are known."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm

from codebirds.birds import Codebirds
from codebirds.glyphs import CUES
from everycause.data.attributes import attribute
from everycause.data.sources import DataParams, open_split
from everycause.errors import UserError
from everycause.evaluation.counterfactual_images import (
    cout,
    frechet_distance,
    image_measures,
    mean_with_interval,
    split_distance,
)
from everycause.evaluation.counterfactual_judgement import IDEAL, OTHER_SCENE, Judge, Subject, table
from everycause.evaluation.counterfactual_truth import decodes, drawings, ideal, image_truth, other_scene
from everycause.inference import logits_of_images
from everycause.models import Classifier
from tests.conftest import make_classifier


def noisy(images: torch.Tensor, amount: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (images + torch.randint(-amount, amount + 1, images.shape, generator=generator)).clamp(0, 255).byte()


def test_the_frechet_distance_is_its_formula() -> None:
    generator = np.random.default_rng(0)
    first, second = generator.normal(size=(40, 5)), 1 + 2 * generator.normal(size=(30, 5))
    covariances = np.cov(first, rowvar=False), np.cov(second, rowvar=False)
    apart = ((first.mean(axis=0) - second.mean(axis=0)) ** 2).sum()
    expected = apart + np.trace(sum(covariances)) - 2 * np.trace(sqrtm(covariances[0] @ covariances[1])).real
    assert frechet_distance(first, second) == pytest.approx(expected, rel=1e-6)
    assert frechet_distance(first, first) == pytest.approx(0, abs=1e-6)
    assert split_distance(first, first) > 0.1  # the halves hold other images


def test_cout_is_the_area_between_the_probabilities_step_by_step(classifier: Classifier) -> None:
    originals = torch.randint(0, 256, (2, 3, 32, 32), generator=torch.Generator().manual_seed(1)).byte()
    changed = noisy(originals, 90)
    prediction = logits_of_images(classifier, originals).argmax(dim=1)
    target = (prediction + 1) % 4
    found = cout(classifier, originals, changed, prediction, target)
    for image in range(2):
        change = (changed[image].int() - originals[image].int()).abs().sum(dim=0).flatten()
        order = sorted(range(32 * 32), key=lambda pixel: -int(change[pixel]))  # stable, as the ranks are
        values = []
        for step in range(51):
            mixed = originals[image].clone().flatten(1)
            taken = order[: round(step * 32 * 32 / 50)]
            mixed[:, taken] = changed[image].flatten(1)[:, taken]
            seen = logits_of_images(classifier, mixed.view(1, 3, 32, 32)).softmax(dim=1)[0]
            values.append(float(seen[target[image]] - seen[prediction[image]]))
        expected = sum((one + other) / 2 / 50 for one, other in pairwise(values))
        assert float(found[image]) == pytest.approx(expected, abs=1e-4)


def test_an_unchanged_image_has_no_change_and_a_similarity_of_1(classifier: Classifier) -> None:
    originals = torch.randint(0, 256, (3, 3, 32, 32), generator=torch.Generator().manual_seed(1)).byte()
    prediction = logits_of_images(classifier, originals).argmax(dim=1)
    still = image_measures(classifier, originals, originals, prediction, (prediction + 1) % 4)
    assert still["flip"].sum() == still["l1"].sum() == still["changed"].sum() == 0 and (still["ssim"] == 1).all()
    moved = originals.clone()
    moved[0, :, 0, 0] = torch.where(originals[0, :, 0, 0] > 127, 0, 255).byte()
    one = image_measures(classifier, originals, moved, prediction, prediction)
    assert one["changed"].tolist() == [1 / 32**2, 0, 0] and (one["flip"][1:] == 1).all()
    difference = (moved[0].int() - originals[0].int()).abs().sum()
    assert one["l1"][0] == pytest.approx(float(difference) / 255 / (3 * 32**2))


def test_intervals_leave_out_images_without_a_value() -> None:
    values = np.array([1.0, 0.0, np.nan, 1.0])
    found = mean_with_interval(values)
    assert found.mean == pytest.approx(2 / 3) and found.low < found.mean < found.high
    assert np.isnan(mean_with_interval(np.array([np.nan])).mean)


@pytest.fixture
def many(default_birds: Codebirds) -> tuple[Codebirds, object, np.ndarray]:
    factors = default_birds.factors("validation", np.arange(12))
    return default_birds, factors, (factors.label + 3) % default_birds.num_classes


def test_originals_are_read_without_an_error(many: tuple) -> None:
    birds, factors, target = many
    truth = image_truth(drawings(birds, factors), birds.images(factors), target)
    assert truth["parts_changed"].sum() == truth["decodes"].sum() == 0 and (truth["scene_stayed"] == 1).all()
    assert (truth["parts_progress"] == 0).all() and np.isnan(truth["on_parts"]).all()


def test_the_ideal_image_changes_the_parts_that_differ_and_no_scene(many: tuple) -> None:
    birds, factors, target = many
    truth = image_truth(drawings(birds, factors), ideal(birds, factors, target), target)
    differ = (birds.code.words[target] != factors.variants).sum(axis=1)
    assert (differ >= birds.code.distance).all()
    # a part that another one hides cannot be seen to change
    assert (truth["parts_changed"] <= differ).all() and truth["parts_changed"].mean() > differ.mean() - 0.3
    assert (truth["parts_towards"] == truth["parts_changed"]).all() and (truth["decodes"] == 1).all()
    assert np.allclose(truth["parts_progress"], 1, atol=0.01) and (truth["scene_stayed"] == 1).all()
    assert (truth["on_scene"] < 0.4).all() and truth["on_parts"].mean() > 0.5


def test_another_scene_is_seen_as_another_scene_and_as_no_other_part(many: tuple) -> None:
    birds, factors, target = many
    truth = image_truth(drawings(birds, factors), other_scene(birds, factors, target), target)
    changed = factors.scene != target
    assert (truth["parts_changed"] == 0).all() and (truth["scene_stayed"] == ~changed).all() and changed.sum() > 8
    assert np.allclose(truth["scene_progress"][changed], 1) and np.isnan(truth["scene_progress"][~changed]).all()
    assert (truth["on_scene"][changed] > 0.85).all()


def test_one_part_of_another_class_is_one_part_half_way(many: tuple) -> None:
    birds, factors, target = many
    variants = factors.variants.copy()
    variants[:, 0] = birds.code.words[target, 0]
    own, full = birds.images(factors), birds.images(replace(factors, variants=variants))
    third = np.round(own + (full.astype(float) - own) / 3).astype(np.uint8)
    differ = variants[:, 0] != factors.variants[:, 0]
    for shown, moved, share in ((third, 0, 1 / 3), (full, 1, 1)):
        truth = image_truth(drawings(birds, factors), shown, target)
        assert (truth["parts_changed"] == moved * differ).all()
        parts = (birds.code.words[target] != factors.variants).sum(axis=1)
        assert np.allclose(truth["parts_progress"], share * differ / parts, atol=0.05)
        assert np.allclose(truth[f"parts_progress/{CUES[0].name}"][differ], share, atol=0.05)


def test_a_word_is_decoded_when_it_is_nearest_alone_and_enough_is_there() -> None:
    words = np.array([[0, 0, 0], [1, 1, 1], [0, 1, 2]])
    shown = np.array([[1, 1, 0], [0, 1, 1], [1, 2, 2], [0, 1, 0]])
    assert decodes(words, shown, np.array([1, 1, 1, 0]), 2).tolist() == [1, 0, 0, 0]


def test_the_table_has_every_measure_with_intervals_and_differences(
    classifier: Classifier, data_params: DataParams
) -> None:
    split = open_split(data_params, "validation", 1)
    birds = Codebirds(data_params.codebirds.settings)
    index = torch.arange(6)
    prediction = logits_of_images(classifier, split.read(index.numpy())).argmax(dim=1)
    subject = Subject(index, prediction, (prediction + 1) % 4)
    originals = split.read(index.numpy())
    changed = {"ace": noisy(originals, 40), "cecas-1": noisy(originals, 20)}
    rows = list(table(Judge(classifier, make_classifier(1), split, birds), subject, changed))
    found = {(row.method, row.measure): row for row in rows}
    assert len(found) == len(rows) and {row.method for row in rows} == {*changed, IDEAL, OTHER_SCENE}
    assert found["cecas-1", "l1/less_ace"].high < 0 and ("ace", "l1/less_ace") not in found
    assert found["ace", "l1"].low <= found["ace", "l1"].value <= found["ace", "l1"].high
    assert found["cecas-1", "fid"].value < found["ace", "fid"].value
    assert found[IDEAL, "decodes"].value == 1 and found[OTHER_SCENE, "parts_changed"].value == 0


def test_the_scene_is_a_known_attribute_of_codebirds_and_no_other_is(data_params: DataParams, birds: Codebirds) -> None:
    assert attribute(data_params, "train", "scene").tolist() == birds.factors("train").scene.tolist()
    with pytest.raises(UserError, match="'weather', which data.source 'codebirds' does not know .it knows scene."):
        attribute(data_params, "train", "weather")
    folder = data_params.model_copy(update={"source": "folder"})
    folder.__pydantic_extra__["folder"] = None
    with pytest.raises(UserError, match="it knows none"):
        attribute(folder, "train", "scene")
