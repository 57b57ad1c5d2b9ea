"""Rankings judged with several baselines against slow references; Captum's attributions; searches beside each other."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml

from everycause.data.split import Split
from everycause.errors import UserError
from everycause.evaluation.rankings import BASELINES, SEARCHES, Bench, judged, logits_along, set_first, steps
from everycause.explanation import attributions
from everycause.explanation.masks import MaskParams
from everycause.explanation.ranking import FidoParams
from everycause.explanation.regions import baseline_pixels
from everycause.explanation.selectors import SELECTORS, area_under, curves
from everycause.models import Classifier
from everycause.reporting.photographs import SPEEDUP, selector_table
from stages import imagenet_samples, photographs
from tests.conftest import ROOT, make_classifier
from tests.data.test_imagenet_samples import samples

CELLS = 4
MASKS = MaskParams(
    selector="counterfactual",
    objective="deletion",
    search="fast",
    partition="grid",
    regions=CELLS**2,
    baseline="mean",
    confidence=0.0,
    max_regions=4,
    images=10,
    shard=10,
    batch_size=8,
    precision="float32",
    compiled=False,
    fido=FidoParams(infill="baseline", steps=5, samples=2, learning_rate=0.05, sparsity=1e-3),
)
EVERYONE = torch.arange(6)


@pytest.fixture
def bench() -> Bench:
    """Six images of blocks, labelled as an untrained classifier predicts them; its margins are small, so they flip."""
    classifier = make_classifier(seed=3)
    coarse = torch.randint(0, 256, (6, 3, CELLS, CELLS), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    images = coarse.repeat_interleave(8, dim=2).repeat_interleave(8, dim=3)
    with torch.no_grad():
        classifier.network.get_classifier().bias -= logits_of(classifier, images).mean(dim=0)
    names, labels = classifier.class_names, logits_of(classifier, images).argmax(dim=1)
    return Bench(classifier, Split("blocks", labels, names, 32, lambda index: images[index], "blocks"), MASKS)


def logits_of(classifier: Classifier, images: torch.Tensor) -> torch.Tensor:
    mean, deviation = (torch.tensor(values)[:, None, None] for values in classifier.statistics)
    with torch.no_grad():
        return classifier((images / 255 - mean) / deviation)


def probabilities_by_hand(
    bench: Bench, image: int, order: list[int], baseline: str, insertion: bool
) -> list[list[float]]:
    """The probabilities after 0, 1, … N regions, composed pixel by pixel."""
    mean, deviation = (torch.tensor(values)[:, None, None] for values in bench.classifier.statistics)
    pixels = bench.split.read(np.array([image]))
    other = baseline_pixels(pixels, baseline)
    whole = (pixels[0] / 255 - mean) / deviation
    empty = torch.zeros_like(whole) if other is None else (other[0] / 255 - mean) / deviation
    found = []
    for count in range(len(order) + 1):
        shown = empty.clone() if insertion else whole.clone()
        for region in order[:count]:
            row, column = 8 * (region // CELLS), 8 * (region % CELLS)
            source = whole if insertion else empty
            shown[:, row : row + 8, column : column + 8] = source[:, row : row + 8, column : column + 8]
        with torch.no_grad():
            found.append(bench.classifier(shown[None]).softmax(dim=1)[0].tolist())
    return found


@pytest.mark.parametrize("baseline", BASELINES)
def test_judgments_are_those_of_images_composed_by_hand(bench: Bench, baseline: str) -> None:
    order = torch.stack([torch.randperm(16, generator=torch.Generator().manual_seed(n)) for n in range(6)])
    masking, labels = bench.request(EVERYONE, baseline).task[:2]
    found = judged(bench.scorer, masking, labels, order, largest=4, stride=1)
    for image in range(6):
        label = int(labels[image])
        deleted = probabilities_by_hand(bench, image, order[image].tolist(), baseline, insertion=False)
        inserted = probabilities_by_hand(bench, image, order[image].tolist(), baseline, insertion=True)
        flips = [count for count in range(1, 5) if int(np.argmax(deleted[count])) != label]
        assert bool(found.flipped[image]) == bool(flips)
        assert int(found.sizes[image]) == (flips[0] if flips else 4)
        for area, curve in ((found.deletion, deleted), (found.insertion, inserted)):
            assert float(area[image]) == pytest.approx(np.trapezoid([one[label] for one in curve], dx=1 / 16), abs=1e-5)
    assert int(found.flipped.sum()) > 0


def test_a_stride_asks_less_and_ends_where_the_whole_curve_does(bench: Bench) -> None:
    assert steps(49, 12, 4).tolist() == [*range(13), 16, 20, 24, 28, 32, 36, 40, 44, 48, 49]
    assert steps(16, 4, 1).tolist() == list(range(17))
    masking, labels = bench.request(EVERYONE, "mean").task[:2]
    order = torch.arange(16).expand(6, -1)
    logits, share = logits_along(bench.scorer, masking, order, steps(16, 4, 1), insertion=False)
    own = logits.softmax(dim=2).gather(2, labels[:, None, None].expand(-1, 17, 1))[:, :, 0]
    expected = curves(bench.scorer, masking, labels, order, insertion=False)
    assert torch.allclose(own, expected[0]) and torch.allclose(share, expected[1])
    few = judged(bench.scorer, masking, labels, order, 4, stride=4)
    assert (few.deletion - area_under(*expected)).abs().max() < 0.1


def test_the_set_comes_first_and_every_region_once() -> None:
    rest = torch.tensor([[3, 1, 0, 2], [0, 1, 2, 3]])
    found = set_first(torch.tensor([[2, 3, -1], [-1, -1, -1]]), rest)
    assert found.tolist() == [[2, 3, 1, 0], [0, 1, 2, 3]]


def test_the_counterfactual_order_flips_with_as_many_regions_as_its_set_has(bench: Bench) -> None:
    table = bench.rankings(EVERYONE, "counterfactual")
    searched = bench.search(EVERYONE, "fast")
    own = table[table.baseline == "mean"]
    assert (own.flipped.to_numpy() == searched.flipped.to_numpy()).all() and searched.flipped.any()
    assert (own.sizes.to_numpy() <= searched.sizes.to_numpy())[searched.flipped.to_numpy()].all()
    assert (own.forwards.to_numpy() == searched.forwards.to_numpy()).all()


def test_the_greedy_search_as_published_does_not_depend_on_its_neighbors(bench: Bench) -> None:
    together = bench.search(EVERYONE, "published").drop(columns="seconds")
    alone = pd.concat([bench.search(EVERYONE[n : n + 1], "published") for n in range(6)]).drop(columns="seconds")
    pd.testing.assert_frame_equal(together, alone)
    candidates = sum(2 * (16 - step) for step in range(4))
    assert (together.forwards[~together.flipped] >= candidates).all()


def test_captums_grad_cam_ranks_as_ours_does(bench: Bench) -> None:
    pytest.importorskip("captum")
    request = bench.request(EVERYONE, "mean")
    ours, theirs = SELECTORS["grad_cam"](request), attributions.grad_cam(request)
    assert torch.allclose(ours.score, theirs.score, atol=1e-5) and torch.equal(ours.forwards, theirs.forwards)


def test_captums_occlusion_is_the_fall_of_the_logit_without_each_region(bench: Bench) -> None:
    pytest.importorskip("captum")
    request = bench.request(EVERYONE, "mean")
    found = attributions.occlusion(request)
    masking, labels = request.task.masking, request.task.labels
    for image in range(6):
        kept = torch.cat([torch.ones(1, 16), 1 - torch.eye(16)]).bool()
        logits = bench.exact.logits(masking, torch.full((17,), image), kept)[:, labels[image]]
        assert torch.allclose(found.score[image], 3 * (logits[0] - logits[1:]), atol=1e-4)  # of three channels
    assert found.forwards.tolist() == [17] * 6


def test_integrated_gradients_add_up_to_the_fall_of_the_logit(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("captum")
    monkeypatch.setattr(attributions, "STEPS", 200)
    request = bench.request(EVERYONE, "mean")
    found = attributions.integrated_gradients(request)
    masking, labels = request.task.masking, request.task.labels
    whole, empty = (bench.exact.logits(masking, EVERYONE, torch.full((6, 16), kept)) for kept in (True, False))
    fall = (whole - empty).gather(1, labels[:, None])[:, 0]
    assert torch.allclose(found.score.sum(dim=1) * 64, fall, atol=0.02 * float(fall.abs().max()))  # 64 pixels a region


def test_captum_leaves_the_network_as_it_was(bench: Bench) -> None:
    pytest.importorskip("captum")
    bench.classifier.train()
    hooks = sum(len(module._forward_hooks) for module in bench.classifier.modules())
    for method in attributions.ATTRIBUTIONS.values():
        method(bench.request(EVERYONE[:1], "mean"))
    assert bench.classifier.training and all(module.training for module in bench.classifier.modules())
    assert sum(len(module._forward_hooks) for module in bench.classifier.modules()) == hooks


def test_without_captum_one_sentence_says_what_to_install(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "captum", None)
    with pytest.raises(UserError, match="pip install captum"):
        bench.rankings(EVERYONE, "captum_occlusion")


def test_ratios_are_taken_over_the_photographs_that_both_have_searched() -> None:
    lines = [("fast", n, True, 2, 10.0, 1.0) for n in range(4)] + [("published", 0, True, 4, 100.0, 30.0)]
    searches = pd.DataFrame(lines, columns=["search", "photograph", "flipped", "sizes", "forwards", "seconds"])
    searches.loc[0, "seconds"] = 2.0
    rankings = pd.DataFrame(
        [("random", "mean", n, n == 0, 3, 0.5, 0.25, 0, 0.1) for n in range(4)],
        columns=[
            "selector",
            "baseline",
            "photograph",
            *("flipped", "sizes", "insertion", "deletion"),
            "forwards",
            "seconds",
        ],
    )
    found = selector_table(rankings, searches).set_index(["selector", "measure"]).value
    assert found["search_fast", SPEEDUP] == found["search_published", "seconds_over_fast"] == 15
    assert found["search_published", "forward_passes_over_fast"] == 10
    assert found["search_published", "fast_set_size_over"] == 0.5
    assert found["random", "flip_rate/mean"] == 0.25 and found["random", "flip_rate/mean/standard_error"] == 0.25


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A profile of a tiny untrained network, its photographs, and a folder to work in."""
    pytest.importorskip("captum")
    raw = yaml.safe_load((ROOT / "profiles" / "imagenet-samples.yaml").read_text())
    raw["model"] |= {"name": "test_resnet.r160_in1k", "weights": "file.pth", "explained_layer": "layer4"}
    raw["data"]["imagenet_samples"]["image_size"] = 32
    raw["data"]["root"] = str(samples(tmp_path / "photographs", [3, 41, 77, 200, 500, 900], side=40))
    raw["masks"] |= {"regions": 16, "precision": "float32"}
    raw["faithfulness"]["selectors"] = ["counterfactual", "random"]
    (tmp_path / "profile.yaml").write_text(yaml.safe_dump(raw))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(imagenet_samples, "SHARD", 2)
    monkeypatch.setattr(imagenet_samples, "open_classifier", _right_about_everything)
    return tmp_path


def _right_about_everything(_place: str, params, names, size, _device) -> Classifier:
    """An untrained network with a bias: every photograph is of the class that the sample has first."""
    classifier = make_classifier(classes=len(names), size=size)
    classifier.class_names = tuple(names)
    with torch.no_grad():
        classifier.network.get_classifier().weight.mul_(0.05)
        classifier.network.get_classifier().bias[[3, 41, 77]] = 3.0
    return classifier


def test_a_run_that_was_cut_short_goes_on_and_ends_in_the_same_table_and_page(
    toy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"profile": toy / "profile.yaml", "greedy": 2, "published": 1}
    monkeypatch.setattr(imagenet_samples, "select_images", lambda *_: type("Chosen", (), {"index": torch.arange(6)}))
    imagenet_samples.main(**options, out=Path("whole"))
    asked, measure = [], Bench.rankings

    def stops(self: Bench, index: torch.Tensor, selector: str) -> pd.DataFrame:
        if len(asked) == 3:
            raise KeyboardInterrupt
        asked.append(selector)
        return measure(self, index, selector)

    monkeypatch.setattr(Bench, "rankings", stops)
    with pytest.raises(KeyboardInterrupt):
        imagenet_samples.main(**options, out=Path("artifacts/imagenet_samples"))
    monkeypatch.setattr(Bench, "rankings", lambda *given: asked.append("again") or measure(*given))
    imagenet_samples.main(**options, out=Path("artifacts/imagenet_samples"))
    assert asked.count("again") == 3 * 5 - 3
    whole, resumed = (pd.read_csv(f"{place}/rankings.csv") for place in ("whole", "artifacts/imagenet_samples"))
    pd.testing.assert_frame_equal(whole.drop(columns="seconds"), resumed.drop(columns="seconds"))
    searches = pd.read_csv("whole/searches.csv")
    assert searches.groupby("search").size().to_dict() == {"fast": 2, "greedy": 2, "published": 1}
    photographs.main()
    page, table = (Path("reports/photographs") / f"imagenet_samples.{kind}" for kind in ("md", "csv"))
    assert "6 photographs that test_resnet" in page.read_text() and "0.793" in page.read_text()
    assert {"counterfactual", "captum_occlusion", *(f"search_{one}" for one in SEARCHES)} <= set(
        pd.read_csv(table).selector
    )


def test_options_that_make_no_sense_are_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--published must be at least 1: --every 1 takes all"):
        imagenet_samples.main(every=0)
    with pytest.raises(UserError, match="says nothing of photographs: run make cue-conflict or make imagenet-samples"):
        photographs.main(artifacts=tmp_path, out=tmp_path / "out")
