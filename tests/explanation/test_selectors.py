import pytest
import timm
import torch
from torch.nn.functional import interpolate

from everycause.data.split import Split
from everycause.explanation.objectives import OBJECTIVES
from everycause.explanation.ranking import Request
from everycause.explanation.scoring import Scorer
from everycause.explanation.search import SearchInputs
from everycause.explanation.selectors import SELECTORS, area_under, bidirectional, curves, cut_at_flip
from everycause.models import Classifier, LayerOutput, ModelParams
from tests.conftest import STATISTICS
from tests.explanation.searching import PARAMS, task_of


@pytest.fixture
def task(classifier: Classifier, train: Split) -> SearchInputs:
    return task_of(classifier, train, cells=3, count=6)


BLACK = Split(
    "black",
    torch.arange(8) % 4,
    tuple("abcd"),
    32,
    lambda index: torch.zeros(len(index), 3, 32, 32, dtype=torch.uint8),
    "black",
)


def request_of(classifier: Classifier, task: SearchInputs, filters: torch.Tensor | None = None) -> Request:
    return Request(
        task,
        Scorer(classifier.network, 16, fast=True),
        Scorer(classifier.network, 16),
        classifier,
        torch.arange(len(task.labels)) + 40,
        2,
        "deletion",
        filters,
        BLACK,
        PARAMS.fido,
    )


@pytest.mark.parametrize("name", list(SELECTORS))
def test_a_selector_ranks_every_region_once(classifier: Classifier, task: SearchInputs, name: str) -> None:
    request = request_of(
        classifier, task, torch.ones(4, 96, dtype=torch.bool)[:, : classifier.network.get_classifier().in_features]
    )
    ranking = SELECTORS[name](request)
    assert torch.equal(ranking.order.sort(dim=1).values, torch.arange(9).expand(6, -1))
    again = SELECTORS[name](request)
    assert torch.equal(ranking.order, again.order)


def test_an_order_is_cut_at_its_first_flip(classifier: Classifier, task: SearchInputs) -> None:
    request = request_of(classifier, task)
    ranking = SELECTORS["random"](request)
    found = cut_at_flip(request, ranking, 9)
    assert found.flipped.any()
    for row, order in enumerate(found.order.tolist()):
        chosen = [region for region in order if region >= 0]
        assert chosen == ranking.order[row, : len(chosen)].tolist()
        for length in range(1, len(chosen) + 1):
            kept = torch.ones(1, 9, dtype=torch.bool)
            kept[0, chosen[:length]] = False
            flips = int(request.exact.logits(task.masking, torch.tensor([row]), kept).argmax()) != int(task.labels[row])
            assert flips == (bool(found.flipped[row]) and length == len(chosen))


def test_random_orders_depend_on_the_image_alone(classifier: Classifier, task: SearchInputs) -> None:
    whole = SELECTORS["random"](request_of(classifier, task)).order
    rows = torch.tensor([4, 1])
    some = SearchInputs(task.masking.rows(rows), task.labels[rows], task.runner_up[rows], task.log_odds[rows])
    assert torch.equal(SELECTORS["random"](request_of(classifier, some)._replace(index=rows + 40)).order, whole[rows])


def slow_bidirectional(scorer: Scorer, task: SearchInputs, row: int, pending: int) -> list[int]:
    """LIMA's search for one image, one trial at a time."""
    goal = OBJECTIVES["factual"]

    def value(regions: list[int]) -> float:
        removed = torch.zeros(1, 9, dtype=torch.bool)
        removed[0, regions] = True
        one = torch.tensor([row])
        return float(
            goal.value(scorer.set_logits(task.masking, one, removed, goal), task.labels[one], task.runner_up[one])
        )

    front: list[int] = []
    back: list[int] = []
    while remaining := [region for region in range(9) if region not in front + back]:
        gains = {region: value([*front, region]) for region in remaining}
        best = max(remaining, key=lambda region: (gains[region], -region))
        front.append(best)
        remaining.remove(best)
        if remaining:
            lowest = sorted(remaining, key=lambda region: (gains[region], region))[:pending]
            together = {region: value([*back, region]) for region in lowest}
            back.append(min(sorted(lowest), key=lambda region: (together[region], region)))
    return front + back[::-1]


@pytest.mark.parametrize("pending", (1, 3, 12))
def test_the_bidirectional_search_is_limas(classifier: Classifier, task: SearchInputs, pending: int) -> None:
    scorer = Scorer(classifier.network, 16)
    order, forwards = bidirectional(task, scorer, "factual", pending)
    assert [slow_bidirectional(scorer, task, row, pending) for row in range(3)] == order[:3].tolist()
    trials = sum(9 - 2 * i for i in range(5)) + sum(min(pending, 8 - 2 * i) for i in range(4))
    assert forwards.tolist() == [2 * trials] * 6


def test_curves_begin_and_end_with_the_whole_and_the_empty_image(classifier: Classifier, task: SearchInputs) -> None:
    scorer, everyone = Scorer(classifier.network, 16), torch.arange(6)
    order = SELECTORS["random"](request_of(classifier, task)).order
    deletion, share = curves(scorer, task.masking, task.labels, order, insertion=False)
    insertion, _ = curves(scorer, task.masking, task.labels, order, insertion=True)
    whole = (
        scorer.logits(task.masking, everyone, torch.ones(6, 9, dtype=torch.bool))
        .softmax(dim=1)
        .gather(1, task.labels[:, None])[:, 0]
    )
    assert (
        torch.allclose(deletion[:, 0], whole)
        and torch.allclose(insertion[:, -1], whole)
        and torch.allclose(deletion[:, -1], insertion[:, 0])
    )
    assert torch.allclose(share[:, -1], torch.ones(6)) and (share[:, 0] == 0).all() and (share.diff(dim=1) > 0).all()
    assert torch.allclose(
        insertion.flip(1), curves(scorer, task.masking, task.labels, order.flip(1), insertion=False)[0], atol=1e-6
    )
    assert torch.allclose(
        area_under(torch.full((2, 4), 0.3), torch.tensor([[0, 0.1, 0.7, 1.0]]).expand(2, -1)), torch.tensor(0.3)
    )


def test_grad_cam_finds_the_planted_region(
    classifier: Classifier, train: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = task_of(classifier, train, cells=2, count=4)

    def planted(_classifier: Classifier, images: torch.Tensor) -> LayerOutput:
        maps = torch.zeros(len(images), 2, 4, 4)
        maps[:, 0, -1, -1], maps[:, 1, 0, 0] = 1.0, 5.0
        maps.requires_grad_()
        return LayerOutput(maps, (maps[:, 0].mean(dim=(1, 2)) - maps[:, 1].mean(dim=(1, 2)))[:, None] * torch.ones(4))

    monkeypatch.setattr(Classifier, "layer_output", planted)
    assert (SELECTORS["grad_cam"](request_of(classifier, task)).order[:, 0] == 3).all()


def test_a_selector_that_lacks_something_says_what(classifier: Classifier, task: SearchInputs) -> None:
    with pytest.raises(ValueError, match="needs the filters of each class"):
        SELECTORS["filter_cam"](request_of(classifier, task))
    flat = Classifier(
        ModelParams(
            name="test_resnet", pretrained=False, weights="cache", explained_layer="fc", head="published", dropout=0.0
        ),
        classifier.class_names,
        32,
        STATISTICS,
    )
    with pytest.raises(ValueError, match="neither feature maps nor a square of patch tokens"):
        SELECTORS["grad_cam"](request_of(flat, task))


@pytest.mark.parametrize(
    ("name", "layer", "options"),
    [("swin_tiny_patch4_window7_224", "layers.1", {"embed_dim": 12, "depths": (1, 1), "num_heads": (1, 2)})],
)
def test_grad_cam_of_a_network_with_channels_last_weighs_channels_not_places(
    train: Split, monkeypatch: pytest.MonkeyPatch, name: str, layer: str, options: dict
) -> None:
    torch.manual_seed(0)
    real = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda *given, **more: real(*given, **more, window_size=4, **options))
    params = ModelParams(
        name=name, pretrained=False, weights="cache", explained_layer=layer, head="published", dropout=0.0
    )
    classifier = Classifier(params, tuple("abcd"), 32, STATISTICS).eval()
    task = task_of(classifier, train, cells=2, count=3)
    ranking = SELECTORS["grad_cam"](request_of(classifier, task))
    for row in range(3):
        image, label = task.masking.images[row : row + 1], int(task.labels[row])
        outputs: list[torch.Tensor] = []
        handle = classifier.explained_layer.register_forward_hook(
            lambda *given, outputs=outputs: outputs.append(given[2])
        )
        gradient = torch.autograd.grad(classifier.network(image)[0, label], outputs)[0]
        handle.remove()
        assert outputs[0].shape[1:] == (4, 4, 24)  # places first, then the channels
        heat = (gradient.mean(dim=(1, 2), keepdim=True) * outputs[0]).sum(dim=3).relu().detach()
        large = interpolate(heat[:, None], size=(32, 32), mode="bilinear", align_corners=False)[0, 0]
        means = [float(large[y : y + 16, x : x + 16].mean()) for y in (0, 16) for x in (0, 16)]
        assert ranking.score is not None and ranking.score[row].tolist() == pytest.approx(means, rel=1e-3, abs=1e-7)


def test_grad_cam_of_a_vision_transformer_lays_its_patch_tokens_out(train: Split) -> None:
    torch.manual_seed(0)
    params = ModelParams(
        name="test_vit", pretrained=False, weights="cache", explained_layer="blocks.4", head="published", dropout=0.0
    )
    classifier = Classifier(params, tuple("abcd"), 32, STATISTICS).eval()
    task = task_of(classifier, train, cells=2, count=3)
    tokens = classifier.layer_output(task.masking.images).output
    side = int((tokens.shape[1] - classifier.network.num_prefix_tokens) ** 0.5)
    maps = classifier.as_maps(tokens)
    assert maps.shape == (3, tokens.shape[2], side, side)
    assert torch.equal(maps[1, :, 0, 1], tokens[1, classifier.network.num_prefix_tokens + 1])
    order = SELECTORS["grad_cam"](request_of(classifier, task)).order
    assert torch.equal(order.sort(dim=1).values, torch.arange(4).expand(3, -1))
