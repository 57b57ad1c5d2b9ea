from itertools import combinations

import pytest
import torch

from everycause.data.split import Split
from everycause.evaluation.faithfulness import minimum_sizes
from everycause.explanation.objectives import OBJECTIVES, Logits, log_odds
from everycause.explanation.regions import MaskedImages, grid
from everycause.explanation.scoring import Scorer
from everycause.explanation.search import CAREFUL, FAST, SearchInputs, SearchResult, best_candidate, search
from everycause.models import Classifier
from tests.conftest import make_classifier
from tests.explanation.searching import slow_search, task_of, undecided, without

LARGEST = 4


@pytest.fixture
def task(classifier: Classifier, train: Split) -> SearchInputs:
    return task_of(classifier, train)


def found_by(
    classifier: Classifier,
    task: SearchInputs,
    method: str,
    objective: str = "deletion",
    largest: int = LARGEST,
    **options: object,
) -> SearchResult:
    return search(
        task,
        Scorer(classifier.network, 16, fast=True, **options),
        Scorer(classifier.network, 16),
        objective,
        largest,
        method,
    )


def sets_of(found: SearchResult) -> list[list[int]]:
    return [[region for region in row if region >= 0] for row in found.order.tolist()]


def flips(classifier: Classifier, task: SearchInputs, row: int, regions: list[int]) -> bool:
    with torch.inference_mode():
        image = without(task.masking.images[row], task.masking.partition[0], regions)
        return int(classifier(image[None]).argmax()) != int(task.labels[row])


def test_the_greedy_search_is_the_papers(classifier: Classifier, task: SearchInputs) -> None:
    found = found_by(classifier, task, "greedy")
    assert found.flipped.sum() > 2
    for row, chosen in enumerate(sets_of(found)):
        with torch.inference_mode():
            order, flipped, forwards = slow_search(
                classifier, task.masking.images[row], int(task.labels[row]), task.masking.partition[0], LARGEST
            )
        assert chosen == order and bool(found.flipped[row]) == flipped
        assert int(found.forwards[row]) == forwards + flipped  # one more to confirm the flip


@pytest.mark.parametrize("objective", list(OBJECTIVES))
@pytest.mark.parametrize("method", ("fast", "exhaustive"))
def test_every_flip_is_a_flip_of_the_stored_model_and_irreducible(
    classifier: Classifier, task: SearchInputs, method: str, objective: str
) -> None:
    found = found_by(classifier, task, method, objective)
    assert found.flipped.any()
    for row, chosen in enumerate(sets_of(found)):
        assert len(set(chosen)) == len(chosen) <= LARGEST
        if found.flipped[row]:
            assert flips(classifier, task, row, chosen)
            assert not any(
                flips(classifier, task, row, [other for other in chosen if other != region])
                for region in chosen
                if len(chosen) > 1
            )


def test_what_bfloat16_proposes_flips_the_float32_model(classifier: Classifier, task: SearchInputs) -> None:
    found = found_by(classifier, task, "fast", precision="bfloat16")
    assert found.flipped.any()
    for row, chosen in enumerate(sets_of(found)):
        assert flips(classifier, task, row, chosen) or not found.flipped[row]


def test_the_fast_search_flips_as_much_as_the_exhaustive_one_for_less(train: Split) -> None:
    sizes, spent, flipped = (
        {"fast": 0.0, "exhaustive": 0.0},
        {"fast": 0.0, "exhaustive": 0.0},
        {"fast": 0, "exhaustive": 0},
    )
    for seed in range(3):
        classifier = undecided(train, seed)
        task = task_of(classifier, train, cells=6, count=16)
        results = {method: found_by(classifier, task, method, largest=9) for method in sizes}
        both = results["fast"].flipped & results["exhaustive"].flipped
        for method, found in results.items():
            sizes[method] += float((found.order[both] >= 0).sum())
            spent[method] += float(found.forwards.sum())
            flipped[method] += int(found.flipped.sum())
    assert flipped["fast"] >= 0.9 * flipped["exhaustive"] > 10
    assert sizes["fast"] <= 1.2 * sizes["exhaustive"] and spent["fast"] <= 0.7 * spent["exhaustive"]


@pytest.mark.parametrize("method", ("fast", "exhaustive"))
def test_neither_the_batch_size_nor_the_other_images_matter(
    classifier: Classifier, task: SearchInputs, method: str
) -> None:
    whole = found_by(classifier, task, method)
    for size in (1, 7, 500):
        other = search(
            task,
            Scorer(classifier.network, size, fast=True),
            Scorer(classifier.network, size),
            "deletion",
            LARGEST,
            method,
        )
        assert (
            torch.equal(whole.order, other.order)
            and torch.equal(whole.flipped, other.flipped)
            and torch.equal(whole.forwards, other.forwards)
        )
    rows = torch.tensor([7, 3])
    some = SearchInputs(task.masking.rows(rows), task.labels[rows], task.runner_up[rows], task.log_odds[rows])
    few = found_by(classifier, some, method)
    assert torch.equal(few.order, whole.order[rows]) and torch.equal(few.forwards, whole.forwards[rows])


def test_no_set_is_smaller_than_the_true_minimum(classifier: Classifier, task: SearchInputs) -> None:
    least = minimum_sizes(task, Scorer(classifier.network, 16), LARGEST)
    for row in range(4):
        sizes = [
            size
            for size in range(1, LARGEST + 1)
            if any(flips(classifier, task, row, list(chosen)) for chosen in combinations(range(16), size))
        ]
        assert int(least[row]) == (min(sizes) if sizes else 0)
    for method in ("fast", "exhaustive", "greedy"):
        found = found_by(classifier, task, method)
        assert (least[found.flipped] > 0).all() and ((found.order >= 0).sum(dim=1) >= least)[found.flipped].all()
    with pytest.raises(ValueError, match="at most 16 regions"):
        minimum_sizes(
            SearchInputs(MaskedImages(task.masking.images, grid(32, 5)[None], 25, True), *task[1:]),
            Scorer(classifier.network, 16),
            2,
        )


def test_among_flips_the_larger_value_wins_however_small_the_difference() -> None:
    values = torch.tensor([[9.0, 3.001, 3.002, -torch.inf], [1.0, 2.0, 2.0, 0.0], [5.0, -900.0, 4.0, 4.0]])
    flips = torch.tensor([[False, True, True, False], [False] * 4, [False, True, False, False]])
    assert best_candidate(values, flips).tolist() == [2, 1, 1]


def test_equal_scores_go_to_the_lowest_region_and_a_blind_model_never_flips(train: Split) -> None:
    blind = make_classifier(classes=4)
    with torch.no_grad():
        blind.network.get_classifier().weight.zero_()
        blind.network.get_classifier().bias.copy_(torch.tensor([2.0, 1.0, 0.0, 0.0]))
    task = task_of(blind, train, count=3)
    for method in ("greedy", "fast"):
        found = found_by(blind, task, method)
        assert found.order.tolist() == [[0, 1, 2, 3]] * 3 and not found.flipped.any()


def test_a_larger_budget_costs_more_and_a_careful_search_trusts_nothing(
    classifier: Classifier, task: SearchInputs
) -> None:
    assert CAREFUL.trust == 0
    scorer = Scorer(classifier.network, 16)
    plain, swapped = (
        search(task, scorer, scorer, "deletion", LARGEST, "fast", FAST._replace(swaps=swaps)) for swaps in (0, 3)
    )
    assert swapped.forwards.sum() > plain.forwards.sum()
    assert ((swapped.order >= 0).sum(dim=1) <= (plain.order >= 0).sum(dim=1))[plain.flipped].all()


@pytest.mark.parametrize("objective", list(OBJECTIVES))
def test_a_gradient_is_the_derivative_of_the_objective(
    classifier: Classifier, task: SearchInputs, objective: str
) -> None:
    goal = OBJECTIVES[objective]
    state = torch.rand(4, 16, generator=torch.Generator().manual_seed(0)) * 0.5
    some = SearchInputs(task.masking.rows(torch.arange(4)), task.labels[:4], task.runner_up[:4], task.log_odds[:4])
    gradients = Scorer(classifier.network, 3).gradients(some.masking, state, some.labels, some.runner_up, goal)

    def value(removed: torch.Tensor) -> torch.Tensor:
        def seen(kept: torch.Tensor) -> torch.Tensor:
            weight = kept[:, some.masking.partition[0]][:, None].double()
            return classifier.double()(some.masking.images.double() * weight).double()

        return goal.value(Logits(seen(1 - removed), seen(removed)), some.labels, some.runner_up)

    with torch.inference_mode():
        for region in (0, 5, 15):
            nudge = torch.zeros(4, 16)
            nudge[:, region] = 1e-4
            measured = (value(state + nudge) - value(state - nudge)) / (2 * nudge[:, region].double())
            assert torch.allclose(gradients[:, region].double(), measured, rtol=2e-2, atol=2e-3)
    classifier.float()


def test_the_objectives_are_those_of_the_papers() -> None:
    generator = torch.Generator().manual_seed(0)
    without_, alone = torch.randn(5, 3, generator=generator), torch.randn(5, 3, generator=generator)
    labels, runner_up = torch.tensor([0, 1, 2, 0, 1]), torch.tensor([1, 2, 0, 2, 0])
    p, q = without_.softmax(dim=1), alone.softmax(dim=1)
    for i in range(5):
        y, c = int(labels[i]), int(runner_up[i])
        entropy = -sum(float(v) * float(v.log()) for v in q[i])
        expected = {
            "counterfactual": 20 * p[i, c] + 20 * (1 - q[i, c]) + 5 * (1 - p[i, y]) + 5 * q[i, y],
            "factual": 20 * q[i, y] + 5 * (1 - p[i, y]) + 0.01 * (1 - entropy / torch.tensor(3.0).log()),
            "deletion": -(p[i, y] / (1 - p[i, y])).log(),
        }
        for name, value in expected.items():
            assert float(OBJECTIVES[name].value(Logits(without_, alone), labels, runner_up)[i]) == pytest.approx(
                float(value), abs=1e-4
            )
    order = (1 - p[torch.arange(5), labels]).argsort()
    assert torch.equal(OBJECTIVES["deletion"].value(Logits(without_, None), labels, runner_up).argsort(), order)
    confident = torch.tensor([[200.0, 0.0], [190.0, 0.0]])
    odds = log_odds(confident, torch.zeros(2, dtype=torch.int64))
    assert odds[0] > odds[1]  # although both probabilities round to 1


def test_folding_changes_no_prediction_and_not_the_model(classifier: Classifier, task: SearchInputs) -> None:
    before = {name: value.clone() for name, value in classifier.state_dict().items()}
    classifier.train()
    everyone, kept = torch.arange(12), torch.ones(12, 16, dtype=torch.bool)
    exact = Scorer(classifier.network, 5).logits(task.masking, everyone, kept)
    fast = Scorer(classifier.network, 5, fast=True)
    assert torch.allclose(fast.logits(task.masking, everyone, kept), exact, atol=1e-4)
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in fast.network.modules())
    found_by(classifier, task, "fast")
    assert classifier.training and all(value.requires_grad for value in classifier.parameters())
    assert all(torch.equal(value, before[name]) for name, value in classifier.state_dict().items())


def test_a_flip_is_confirmed_without_tf32_and_the_switches_are_restored(
    task: SearchInputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[bool, bool]] = []

    def switches() -> tuple[bool, bool]:
        return torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32

    class Watching(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            seen.append(switches())
            if fails:
                raise KeyboardInterrupt
            return images.mean(dim=(2, 3))

    was = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = True
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    before, fails, one = switches(), False, torch.zeros(1, dtype=torch.int64)
    kept = torch.ones(1, 16, dtype=torch.bool)
    Scorer(Watching(), 1).logits(task.masking, one, kept)
    assert seen == [(False, False)] and switches() == before
    fails = True
    with pytest.raises(KeyboardInterrupt):
        Scorer(Watching(), 1).logits(task.masking, one, kept)
    assert switches() == before and before[1]
    fails = False
    Scorer(Watching(), 1, fast=True).logits(task.masking, one, kept)  # proposals may use it
    assert seen[-1] == before
    torch.backends.cudnn.allow_tf32 = was


@pytest.mark.parametrize("method", ("fast", "exhaustive"))
def test_the_effect_of_a_region_has_no_sign(classifier: Classifier, task: SearchInputs, method: str) -> None:
    effect = found_by(classifier, task, method).effect
    assert (effect >= 0).all() and (effect > 0).any()
