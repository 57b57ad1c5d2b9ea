"""Several processes that divide a search, an evaluation or counterfactual images give the bytes of one."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from everycause import ranks
from everycause.artifacts import PARTS
from everycause.data.shifts import views
from everycause.data.sources import DataParams
from everycause.data.split import Split
from everycause.evaluation.ood import PICTURES, ContactSheet, evaluate
from everycause.explanation import counterfactual_images
from everycause.explanation.image_selection import select_images
from everycause.explanation.masks import MaskParams, Masks, generate
from everycause.explanation.prior import LowPassPrior
from everycause.explanation.steering import Attack, CounterfactualParams
from everycause.inference import logits_divided, logits_of
from everycause.models import Classifier
from tests.conftest import make_classifier
from tests.explanation.searching import PARAMS, always_right, undecided
from tests.together import together
from tests.training.invented import known


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def fresh(folder: Path) -> Path:
    folder.mkdir()
    return folder


@pytest.mark.parametrize(
    ("changes", "processes"),
    [
        ({"shard": 7}, 2),
        ({"partition": "slico", "baseline": "background"}, 3),
        ({"selector": "random"}, 2),
        ({"search": "greedy", "shard": 1, "images": 2}, 2),
    ],
)
def test_masks_of_several_processes_are_those_of_one(
    tmp_path: Path, train: Split, changes: dict, processes: int
) -> None:
    classifier = undecided(train)
    split, params = always_right(train, classifier, 140), PARAMS.model_copy(update=changes)
    alone, divided = fresh(tmp_path / "alone"), fresh(tmp_path / "divided")

    def search(folder: Path, settings: MaskParams) -> dict[str, float]:
        return generate(classifier, split, settings, folder, "model").summary()

    expected = search(alone, params)
    assert together(search, divided, params, processes=processes) == [expected] * processes
    assert files(divided) == files(alone) and PARTS in files(alone)


def test_selection_and_logits_do_not_depend_on_the_number_of_processes(train: Split) -> None:
    classifier = make_classifier()
    split = known(train.subset(torch.arange(530).numpy()))  # one batch of 512, one of 18; nine of 64

    def seen() -> tuple:
        chosen = select_images(classifier, split, 0.3, 50)
        return chosen.index.tolist(), chosen.counts.tolist(), logits_divided(classifier, split).numpy().tobytes()

    expected = seen()
    assert together(seen) == [expected] * 2
    assert expected[2] == logits_of(classifier, split).numpy().tobytes()


def test_views_are_divided_evenly_and_their_logits_are_those_of_one_process(
    tmp_path: Path, data_params: DataParams, train: Split
) -> None:
    classifier = make_classifier(classes=train.num_classes, size=train.image_size)
    classifier.class_names = train.class_names

    def evaluated(folder: Path) -> tuple[list[str], int]:
        read: list[str] = []
        opened = list(views(data_params, ["gaussian_noise", "fog"], [1, 3], 1))

        def noted(split: Split) -> Split:
            return replace(split, read=lambda rows: (read.append(split.name), split.read(rows))[1])

        sheet = ContactSheet(train, [1, 3])
        stored = evaluate(classifier, iter([view._replace(split=noted(view.split)) for view in opened]), sheet=sheet)
        sheet.save(folder)
        if ranks.is_first():
            stored.save(folder)
        return list(stored.views), len(set(read))

    names, count = evaluated(fresh(tmp_path / "alone"))
    (first, some), (second, others) = together(evaluated, fresh(tmp_path / "divided"))
    assert first == second == names and count == len(names) == some + others and abs(some - others) <= 1
    assert files(tmp_path / "divided") == files(tmp_path / "alone") and PICTURES in files(tmp_path / "alone")


def test_counterfactual_images_of_several_processes_are_those_of_one(tmp_path: Path, raw: dict, train: Split) -> None:
    classifier: Classifier = undecided(train)
    split = always_right(train, classifier, 12)
    params = CounterfactualParams(**raw["counterfactuals"] | {"images": 9, "shard": 5, "batch_size": 2})
    attack = Attack(classifier, LowPassPrior(), params)

    def make(folder: Path) -> dict[str, float]:
        return counterfactual_images.generate(attack, split, folder, "model", 0).summary()

    expected = make(fresh(tmp_path / "alone"))
    assert together(make, fresh(tmp_path / "divided")) == [expected] * 2
    assert files(tmp_path / "divided") == files(tmp_path / "alone") and len(files(tmp_path / "alone")) == 3


def test_finished_shards_stay_when_a_process_dies_and_a_rerun_goes_on(tmp_path: Path, train: Split) -> None:
    classifier = undecided(train)
    split, params = always_right(train, classifier, 24), PARAMS.model_copy(update={"shard": 8})
    whole, cut = fresh(tmp_path / "whole"), fresh(tmp_path / "cut")
    masks = generate(classifier, split, params, whole, "model")
    (cut / PARTS).write_text("".join((whole / PARTS).read_text().splitlines(keepends=True)[:1]))
    (cut / "masks-00000.safetensors").write_bytes((whole / "masks-00000.safetensors").read_bytes())
    before = (cut / "masks-00000.safetensors").stat().st_mtime_ns

    def again() -> int:
        return len(generate(classifier, split, params, cut, "model").index)

    assert together(again) == [len(masks.index)] * 2
    assert files(cut) == files(whole) and (cut / "masks-00000.safetensors").stat().st_mtime_ns == before
    assert isinstance(masks, Masks)
