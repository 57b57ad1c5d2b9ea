"""FIDO, cell swaps and CAM masks against slow references written as their papers write them."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn.functional import avg_pool2d, pad

from everycause.data.images import normalized
from everycause.data.split import Split
from everycause.errors import UserError
from everycause.explanation.activation_maps import grad_cam_maps, region_activations
from everycause.explanation.cell_swap import CANDIDATES, distractors, exchanged, shares
from everycause.explanation.fido import TEMPERATURE, gradient, infilled, logistic_noise
from everycause.explanation.ranking import Request
from everycause.explanation.regions import MaskedImages, baseline_pixels, grid
from everycause.explanation.scoring import GRADIENT, Scorer
from everycause.explanation.search import SearchInputs
from everycause.explanation.selectors import SELECTORS, cut_at_flip
from everycause.models import Classifier
from tests.explanation.searching import PARAMS, task_of

CELLS = 9


@pytest.fixture
def request_(classifier: Classifier, train: Split) -> Request:
    task = task_of(classifier, train, cells=3, count=5)
    exact = Scorer(classifier.network, 16)
    classes = replace(train, class_names=classifier.class_names, labels=train.labels % 4)
    return Request(task, exact, exact, classifier, torch.arange(5), 2, "deletion", None, classes, PARAMS.fido)


@pytest.fixture
def large(classifier: Classifier, train: Split, request_: Request) -> Request:
    """The same images three times as large: the explained layer then has 3 × 3 places."""

    def read(index: np.ndarray) -> torch.Tensor:
        return train.read(index).repeat_interleave(3, dim=2).repeat_interleave(3, dim=3)

    split = replace(request_.split, image_size=96, read=read)
    return request_._replace(task=task_of(classifier, split, cells=3, count=5), split=split)


def some(request: Request, rows: list[int]) -> Request:
    index, task = torch.tensor(rows), request.task
    part = SearchInputs(task.masking.rows(index), task.labels[index], task.runner_up[index], task.log_odds[index])
    return request._replace(task=part, index=request.index[index])


def fido_loss(request: Request, row: int, logits: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """The paper's loss for one image, one draw at a time; a mean-color in-fill is 0 after normalization."""
    image, label = request.task.masking.images[row], int(request.task.labels[row])
    partition, draws = request.task.masking.partition[0], []
    for epsilon in noise:
        removed = torch.sigmoid((logits + epsilon) / TEMPERATURE)
        probabilities = request.classifier((image * (1 - removed[partition]))[None])[0].softmax(dim=0)
        odds = (probabilities[label] / (1 - probabilities[label])).log()
        share = sum(removed[region] * (partition == region).float().mean() for region in range(CELLS))
        draws.append(odds + request.fido.sparsity * 56 * 56 * share)
    return torch.stack(draws).mean()


def fido_slowly(request: Request, row: int) -> torch.Tensor:
    """Adam as its paper writes it (Kingma and Ba, ICLR 2015), on the loss above."""
    logits, generator = torch.zeros(CELLS), torch.Generator().manual_seed(int(request.index[row]))
    mean, square = torch.zeros(CELLS), torch.zeros(CELLS)
    for step in range(1, request.fido.steps + 1):
        noise = logistic_noise(request.fido.samples, CELLS, generator)
        leaf = logits.clone().requires_grad_()
        (slope,) = torch.autograd.grad(fido_loss(request, row, leaf, noise), leaf)
        mean, square = 0.9 * mean + 0.1 * slope, 0.999 * square + 0.001 * slope**2
        corrected = (square / (1 - 0.999**step)).sqrt() + 1e-8
        logits = logits - request.fido.learning_rate * mean / (1 - 0.9**step) / corrected
    return logits


def test_fido_learns_what_its_formula_says(request_: Request) -> None:
    params = request_.fido.model_copy(update={"steps": 6, "sparsity": 0.01})
    request = request_._replace(fido=params)
    ranking = SELECTORS["fido"](request)
    assert ranking.score is not None and ranking.forwards.tolist() == [GRADIENT * 6 * 2] * 5
    for row in (0, 3):
        assert torch.allclose(ranking.score[row], (1 + fido_slowly(request, row).exp()).log(), atol=2e-3)


def test_the_gradient_of_fido_is_that_of_finite_differences(request_: Request) -> None:
    request = some(request_, [2])
    generator = torch.Generator().manual_seed(1)
    # draws near one half: there the relaxed masks have slopes that differences can see
    logits, noise = 0.05 * torch.randn(CELLS, generator=generator), 0.1 * torch.randn(3, CELLS, generator=generator)
    shown = request.task.masking.rows(torch.zeros(3, dtype=torch.int64))
    found = gradient(request, shown, request.task.labels.expand(3), logits[None], noise[None])[0]
    for region in range(CELLS):
        step = torch.zeros(CELLS)
        step[region] = 2e-3
        with torch.no_grad():
            ends = [float(fido_loss(request, 0, logits + sign * step, noise)) for sign in (1, -1)]
        assert float(found[region]) == pytest.approx((ends[0] - ends[1]) / 4e-3, rel=0.05, abs=0.02)


def test_without_steps_fido_learns_nothing(request_: Request) -> None:
    ranking = SELECTORS["fido"](request_._replace(fido=request_.fido.model_copy(update={"steps": 0})))
    assert torch.equal(ranking.order, torch.arange(CELLS).expand(5, -1))
    assert ranking.forwards.tolist() == [0] * 5 and torch.allclose(ranking.score, torch.tensor(2.0).log())


def test_when_removal_is_too_dear_fido_keeps_every_region(request_: Request) -> None:
    dear = request_.fido.model_copy(update={"steps": 10, "sparsity": 1000.0})
    assert (SELECTORS["fido"](request_._replace(fido=dear)).score < 0.69).all()  # log 2 is where it begins


def test_what_fido_learns_for_an_image_does_not_depend_on_the_others(request_: Request) -> None:
    together, alone = SELECTORS["fido"](request_).score, SELECTORS["fido"](some(request_, [3, 1])).score
    assert torch.allclose(together[[3, 1]], alone, atol=1e-4)


def test_the_in_fills_of_fido_are_what_they_are_called(request_: Request, train: Split) -> None:
    masking, statistics = request_.task.masking, request_.classifier.statistics
    images = train.read(torch.arange(5).numpy())
    assert infilled(masking, "baseline") is masking
    blurred = normalized(baseline_pixels(images, "blur"), statistics, torch.device("cpu"))
    assert torch.allclose(infilled(masking, "blur").baseline, blurred, atol=0.02)  # the baseline is rounded to bytes
    means = avg_pool2d(pad(masking.images, (5, 5, 5, 5), mode="reflect"), 11, stride=1)
    assert torch.allclose(infilled(masking, "local_mean").baseline, means)
    for infill in ("blur", "local_mean"):
        scores = SELECTORS["fido"](request_._replace(fido=request_.fido.model_copy(update={"infill": infill}))).score
        assert scores.isfinite().all() and scores.std() > 0


def test_cells_are_exchanged_as_every_pair_tried_through_the_last_layer_says(large: Request) -> None:
    classifier, images = large.classifier, large.task.masking.images
    torch.manual_seed(0)
    maps = torch.rand(2, 7, 2, 2)
    weight, bias = torch.randn(4, 7), torch.randn(4)
    own, other = (torch.einsum("kn,ck->nc", one.flatten(1), weight)[None] / 4 for one in maps)
    order, partners = exchanged(own, other, bias, torch.tensor([2]))
    current, free, unused = maps[0].flatten(1).clone(), {0, 1, 2, 3}, {0, 1, 2, 3}
    for cell, partner in zip(order[0].tolist(), partners[0].tolist(), strict=True):
        tried = {}
        for mine in free:
            for theirs in unused:
                swapped = current.clone()
                swapped[:, mine] = maps[1].flatten(1)[:, theirs]
                tried[mine, theirs] = float((weight @ swapped.mean(dim=1) + bias).softmax(dim=0)[2])
        assert max(tried, key=tried.__getitem__) == (cell, partner)
        current[:, cell] = maps[1].flatten(1)[:, partner]
        free.remove(cell)
        unused.remove(partner)
    whole = shares(classifier, images, 2)
    with torch.no_grad():
        assert torch.allclose(whole.values.sum(dim=1) + whole.bias, classifier(images), atol=1e-3)


def test_the_distractor_is_the_surest_of_the_next_images_of_the_runner_up(large: Request) -> None:
    found, split = distractors(large), large.split
    for row in range(5):
        target = int(large.task.runner_up[row])
        members = [index for index in range(len(split)) if int(split.labels[index]) == target]
        later = [index for index in members if index >= int(large.index[row])]
        tried = torch.tensor((later + members)[:CANDIDATES])
        images = normalized(split.read(tried.numpy()), large.classifier.statistics, torch.device("cpu"))
        with torch.no_grad():
            sure = large.classifier(images).softmax(dim=1)[:, target]
        best = shares(large.classifier, images[int(sure.argmax())][None], 1)
        assert torch.allclose(found[row], best.values[0], atol=1e-4)


def test_regions_as_large_as_cells_go_in_the_order_of_the_exchange(large: Request) -> None:
    classifier, images = large.classifier, large.task.masking.images
    own = shares(classifier, images, 16)
    side = own.layout[0]
    masking = MaskedImages(images, grid(images.shape[-1], side)[None], side**2, True)
    ranking = SELECTORS["cell_swap"](large._replace(task=large.task._replace(masking=masking)))
    order, _ = exchanged(own.values, distractors(large), own.bias, large.task.runner_up)
    assert side == 3 and torch.equal(ranking.order, order) and ranking.forwards.tolist() == [1 + CANDIDATES] * 5


def test_a_runner_up_without_an_image_is_one_sentence(request_: Request) -> None:
    target = int(request_.task.runner_up[0])
    without = replace(request_.split, labels=torch.full_like(request_.split.labels, (target + 1) % 4))
    with pytest.raises(UserError, match="'cell_swap' needs an image of the class"):
        SELECTORS["cell_swap"](request_._replace(split=without))


def test_a_network_without_a_linear_last_layer_is_one_sentence(request_: Request) -> None:
    told = request_.classifier.params.model_copy(update={"explained_layer": "layer3"})
    classifier = Classifier(told, request_.classifier.class_names, 32, request_.classifier.statistics).eval()
    with pytest.raises(UserError, match="'cell_swap' reads the last layer as filters do"):
        SELECTORS["cell_swap"](request_._replace(classifier=classifier))


def test_object_and_context_masks_come_first_and_chance_decides_within(large: Request) -> None:
    activations = region_activations(large)
    maps = grad_cam_maps(large)  # 3 × 3 places for 3 × 3 regions of 32 pixels
    for row, one in enumerate(maps.flatten(1)):
        spread = float(one.max() - one.min())
        scaled = (one - one.min()) / spread if spread else torch.zeros(CELLS)
        assert torch.allclose(activations[row], scaled, atol=1e-4)
    assert activations.std(dim=1).max() > 0.1
    for name, chosen in (("cam_masks", activations > 0.3), ("cam_masks_context", activations <= 0.5)):
        ranking = SELECTORS[name](large)
        by_chance = SELECTORS["random"](large).order.tolist()
        for row in range(5):
            inside = {region for region in range(CELLS) if chosen[row, region]}
            first = [region for region in by_chance[row] if region in inside]
            assert ranking.order[row].tolist() == first + [one for one in by_chance[row] if one not in inside]
        assert ranking.forwards.tolist() == [GRADIENT] * 5


@pytest.mark.parametrize("name", ["fido", "cell_swap", "cam_masks", "cam_masks_context"])
def test_a_set_flips_the_stored_model_exactly_where_it_says_so(request_: Request, name: str) -> None:
    found = cut_at_flip(request_, SELECTORS[name](request_), 4)
    partition = request_.task.masking.partition[0]
    for row in range(5):
        image = request_.task.masking.images[row].clone()
        for region in (region for region in found.order[row].tolist() if region >= 0):
            image[:, partition == region] = 0
        with torch.no_grad():
            flips = int(request_.classifier(image[None]).argmax()) != int(request_.task.labels[row])
        assert flips == bool(found.flipped[row])


@pytest.mark.parametrize("name", ["fido", "cell_swap", "cam_masks", "cam_masks_context"])
def test_a_selector_leaves_no_trace_in_the_classifier(request_: Request, name: str) -> None:
    classifier = request_.classifier.train()
    before = {key: value.clone() for key, value in classifier.state_dict().items()}
    SELECTORS[name](request_)
    assert all(module.training and not module._forward_hooks for module in classifier.modules())
    assert all(torch.equal(value, before[key]) for key, value in classifier.state_dict().items())
    assert all(value.grad is None for value in classifier.parameters())
