from itertools import pairwise

import pytest
import torch

from everycause.data.images import normalized
from everycause.data.sources import DataParams, open_split
from everycause.data.split import Split
from everycause.errors import UserError
from everycause.evaluation.faithfulness import (
    FaithfulnessParams,
    against_truth,
    areas_under_curves,
    covered_share,
    faithfulness,
    part_measures,
    region_order,
)
from everycause.explanation.masks import Masks, orders, searched
from everycause.explanation.selectors import SELECTORS
from everycause.params import validated
from tests.explanation.searching import PARAMS, always_right, undecided, without
from tests.training.invented import invented_masks


def test_part_measures_count_pixels() -> None:
    parts = torch.zeros(1, 2, 4, 4, dtype=torch.bool)
    parts[0, 0, 0, :], parts[0, 1, 3, :2] = True, True
    masks = torch.zeros(1, 4, 4, dtype=torch.bool)
    masks[0, 0, :2], masks[0, 1, :2] = True, True
    assert covered_share(masks, parts).tolist() == [[0.5, 0.0]]
    assert part_measures(masks, parts) == {
        "share_on_parts": 0.5,
        "part_recall": 2 / 6,
        "part_iou": 2 / 8,
        "flip_distance": 1.0,
    }


def test_removing_everything_destroys_every_part_and_nothing_none() -> None:
    parts = torch.rand(3, 5, 8, 8, generator=torch.Generator().manual_seed(0)) > 0.5
    full = part_measures(torch.ones(3, 8, 8, dtype=torch.bool), parts)
    assert full["flip_distance"] == 5 and full["part_recall"] == 1
    corner = torch.zeros(3, 8, 8, dtype=torch.bool)
    corner[:, 0, 0] = True
    assert part_measures(corner, parts)["flip_distance"] == 0


def test_an_invisible_part_is_not_destroyed() -> None:
    parts = torch.zeros(1, 2, 4, 4, dtype=torch.bool)
    parts[0, 1, 0, 0] = True
    everything = torch.ones(1, 4, 4, dtype=torch.bool)
    assert covered_share(everything, parts).tolist() == [[0.0, 1.0]]
    assert part_measures(everything, parts)["flip_distance"] == 1


def test_every_selector_is_judged_on_the_same_images(train: Split, data_params: DataParams) -> None:
    classifier = undecided(train)
    split = open_split(data_params, "validation", 1)
    split = always_right(split, classifier, 32)
    params = FaithfulnessParams(
        rows=["base"], selectors=["counterfactual", "random", "filter_cam"], images=16, exact_images=4
    )
    results = faithfulness(classifier, split, data_params, PARAMS, params, 1)
    assert list(results) == ["counterfactual", "random"]  # there is no filter bank
    own, random = results["counterfactual"], results["random"]
    assert own["searched"] == random["searched"] == 16 and own["flip_rate"] >= random["flip_rate"]
    assert own["deletion_auc"] < random["deletion_auc"] and all(
        0 <= own[f"{name}_auc"] <= 1 for name in ("insertion", "deletion")
    )
    assert 1 <= own["optimality_ratio"] <= random.get("optimality_ratio", 4.0) <= 4
    assert {"share_on_parts", "part_iou", "flip_distance", "random/flip_distance"} <= set(own)


def test_photos_have_no_truth_to_be_held_against(train: Split, data_params: DataParams) -> None:
    assert against_truth(invented_masks(train), data_params.model_copy(update={"source": "folder"}), 1, 0) == {}


def test_the_areas_are_those_of_the_plain_definition(train: Split) -> None:
    classifier = undecided(train)
    split = always_right(train, classifier, 6)
    (masks,) = searched(classifier, split, torch.arange(6), PARAMS)
    order = torch.arange(16).expand(6, -1)
    areas = areas_under_curves(classifier, split, masks, order, PARAMS)
    images = normalized(split.read(torch.arange(6).numpy()), classifier.statistics, torch.device("cpu"))
    deletion = []
    with torch.inference_mode():
        for row in range(6):
            curve = []
            for removed in range(17):
                shown = without(images[row], masks.partition[0], list(range(removed)))
                curve.append(float(classifier(shown[None]).softmax(dim=1)[0, split.labels[row]]))
            deletion.append(sum((a + b) / 2 / 16 for a, b in pairwise(curve)))
    assert areas["deletion_auc"] == pytest.approx(sum(deletion) / 6, abs=1e-4)


@pytest.mark.parametrize("selector", [name for name in SELECTORS if name != "filter_cam"])
def test_the_order_of_regions_is_the_ranking_of_the_selector(train: Split, selector: str) -> None:
    classifier, params = undecided(train), PARAMS.model_copy(update={"selector": selector})
    split = always_right(train, classifier)
    found = Masks.joined(list(searched(classifier, split, torch.arange(6), params)))
    order = region_order(classifier, split, found, selector, params)
    assert torch.equal(order, orders(classifier, split, found, selector, params))
    assert torch.equal(order.sort(dim=1).values, torch.arange(16).expand(6, -1))


@pytest.mark.parametrize(
    ("judged", "message"),
    [
        ({"rows": ["base"], "selectors": ["grad_cam", "cam"]}, "'faithfulness.selectors.1' is 'cam'"),
        ({"rows": ["base", "masks"], "selectors": ["filter_cam"]}, "faithfulness: selectors names 'filter_cam' alone"),
        ({"rows": ["base", "mask"], "selectors": []}, "faithfulness.rows: 'mask' is neither 'base' nor one of rows"),
        ({"rows": [], "selectors": ["random"]}, "faithfulness.rows is empty"),
    ],
)
def test_lists_that_judge_nothing_are_refused_before_any_work(raw: dict, judged: dict, message: str) -> None:
    raw["faithfulness"] |= judged
    with pytest.raises(UserError, match=message):
        validated(raw, "params.yaml")


def test_a_model_that_no_selector_can_explain_is_refused(train: Split, data_params: DataParams) -> None:
    params = FaithfulnessParams(rows=["base"], selectors=["filter_cam"], images=16, exact_images=0)
    with pytest.raises(UserError, match="faithfulness.selectors names 'filter_cam' alone, which only the base with"):
        faithfulness(undecided(train), train, data_params, PARAMS, params, 1)
