"""A training that is killed at any step goes on to the bytes of one that nobody disturbed."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from everycause import unfinished as module
from everycause.artifacts import PARTS, atomic_folder
from everycause.data.sources import DataParams, open_split
from everycause.data.split import Split
from everycause.errors import UserError
from everycause.models import Classifier
from everycause.training.fit import PLAIN, BaseParams, Epoch, FitParams, Goal, fit, train_base
from everycause.training.objectives import GroupRobust
from everycause.training.rows import goal_of, retrain
from everycause.training.steps import AugmentationParams, Order
from everycause.unfinished import Unfinished, kept, seconds_between
from tests.conftest import MODEL, make_classifier
from tests.training.invented import AUGMENTATION, PARAMS, ROUNDS, invented_upstream, known, recipe

STEPS = 3
"""Steps of an epoch: 96 images, 32 at a time."""


class Killed(BaseException):
    """What ends a training in the middle."""


@pytest.fixture(autouse=True)
def at_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(module.SECONDS, "0")
    monkeypatch.setattr(module, "DEAREST", 0)


@pytest.fixture
def small(train: Split) -> Split:
    return known(train.subset(torch.arange(96).numpy()).kept_in_memory(100))


@pytest.fixture
def validation(data_params: DataParams) -> Split:
    return known(open_split(data_params, "validation", 1)).subset(torch.arange(16).numpy())


def killed_at(monkeypatch: pytest.MonkeyPatch, number: int, epochs: Iterator[Epoch]) -> list[Epoch]:
    """The epochs of a training that dies right after its state was written for the n-th time."""
    save, count, seen = Unfinished.save, [0], []

    def counted(self: Unfinished, state: dict) -> None:
        save(self, state)
        count[0] += 1
        if count[0] == number:
            raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(Unfinished, "save", counted)
        try:
            for epoch in epochs:
                seen.append(epoch)
        except Killed:
            return seen
    raise AssertionError(f"there were {count[0]} states")


def weights(classifier: Classifier) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in classifier.state_dict().items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(*pair) for pair in zip(one.values(), other.values(), strict=True))


def dropping() -> Classifier:
    """A classifier whose features are dropped at random, by torch's global generator."""
    classifier = make_classifier()
    classifier.network.drop_rate = 0.5
    return classifier


def changed(**changes: object) -> FitParams:
    return PARAMS.model_copy(update=changes)


PHOTOGRAPHIC = AugmentationParams(**{**AUGMENTATION.model_dump(), "resized_crop": 0.5, "color_jitter": 0.2})
CASES = {
    "plain": (None, PARAMS),
    "best of averages": (None, changed(keep="best", average=0.9, augmentation=PHOTOGRAPHIC)),
    "counterfactual images": ("masks", PARAMS),
    "mixed images": ("cutmix", PARAMS),
    "weights of groups": ("group", PARAMS),
    "stochastic gradient descent": (
        "joint", changed(batch_size=40, optimizer=PARAMS.optimizer.model_copy(update={"name": "sgd"})),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_a_training_killed_at_any_step_goes_on_to_the_same_bytes(
    case: str, small: Split, validation: Split, data_params: DataParams, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row, params = CASES[case]

    def begun(folder: Path | None) -> tuple[Classifier, Iterator[Epoch]]:
        classifier, goal = dropping(), PLAIN
        if row == "group":
            goal = Goal(PLAIN.weights, None, None, GroupRobust(torch.arange(96) % 3))
        elif row is not None:
            goal = goal_of(row, invented_upstream(small), recipe(data_params), 0)
        unfinished = Unfinished(folder)
        return classifier, fit(classifier, small, validation, params, 0, goal, "row", unfinished)

    whole, epochs = begun(None)
    expected, result = list(epochs), weights(whole)
    for number in (2, STEPS, STEPS + 1):  # within an epoch, at its last step, and at its end
        folder = tmp_path / str(number)
        folder.mkdir()
        seen = killed_at(monkeypatch, number, begun(folder)[1])
        again = killed_at(monkeypatch, 2, begun(folder)[1])  # and once more, two steps later
        resumed, rest = begun(folder)
        assert list(rest) == expected and seen == expected[: len(seen)] and again == expected[: len(again)]
        assert same(weights(resumed), result), number


def test_epochs_of_the_head_alone_are_not_trained_again(
    small: Split, validation: Split, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = BaseParams(**PARAMS.model_dump(), head_epochs=1, head_learning_rate=1e-2)

    def begun(folder: Path | None) -> tuple[Classifier, Iterator[Epoch]]:
        return train_base(MODEL, params, small, validation, 0, torch.device("cpu"), folder)

    whole, epochs = begun(None)
    expected = list(epochs)
    killed_at(monkeypatch, 2, begun(tmp_path)[1])
    killed_at(monkeypatch, STEPS + 2, begun(tmp_path)[1])
    resumed, rest = begun(tmp_path)
    steps: list[int] = []
    load = Unfinished.load
    monkeypatch.setattr(Unfinished, "load", lambda self, device: record(steps, load(self, device)))
    assert list(rest) == expected and same(weights(resumed), weights(whole)) and steps[0] == 1


def record(steps: list[int], state: dict | None) -> dict | None:
    steps.append(state["training"]["epoch"] if state is not None else 0)
    return state


def test_rounds_go_on_within_a_round(
    small: Split, validation: Split, data_params: DataParams, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("everycause.training.rounds.has_ended", lambda _found, _growth: True)

    def begun(folder: Path | None) -> tuple[Classifier, Iterator[Epoch]]:
        upstream = invented_upstream(small, validation)
        retraining = retrain("masks_rounds", upstream, recipe(data_params), PARAMS, ROUNDS, 0)
        return upstream.base, retraining.epochs(folder)

    whole, epochs = begun(None)
    expected = list(epochs)
    for number in (1, 3, STEPS + 2, STEPS + 5):  # masks are there, a step later, the epoch is over, in the next round
        folder = tmp_path / str(number)
        folder.mkdir()
        killed_at(monkeypatch, number, begun(folder)[1])
        resumed, rest = begun(folder)
        assert list(rest) == expected and same(weights(resumed), weights(whole)), number


def test_an_order_goes_on_where_it_was_saved() -> None:
    generator = torch.Generator().manual_seed(0)
    order = Order(5, generator)
    for _ in range(7):
        next(order)
    drawn, random = order.drawn(), generator.get_state()
    state = {"indices": torch.tensor(drawn.indices), "place": drawn.place}
    assert torch.equal(drawn.generator, random)
    expected = [next(order) for _ in range(11)]
    again = torch.Generator()
    again.set_state(random)
    other = Order(5, again).load_state(state)
    assert [next(other) for _ in range(11)] == expected
    assert sorted(expected[3:8]) == list(range(5))


def test_a_damaged_state_is_reported_and_the_training_starts_again(
    small: Split, validation: Split, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def begun() -> Iterator[Epoch]:
        return fit(make_classifier(), small, validation, changed(epochs=1), 0, unfinished=Unfinished(tmp_path))

    killed_at(monkeypatch, 1, begun())
    file = Unfinished(tmp_path).file
    assert file is not None
    file.write_bytes(file.read_bytes()[:-100])
    assert len(list(begun())) == 1
    assert any("is damaged" in one and "the training starts again" in one for one in caplog.messages)


def test_states_are_written_no_more_often_than_asked_for_and_are_worth(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(module, "DEAREST", 20)
    monkeypatch.setenv(module.SECONDS, "30")
    unfinished = Unfinished(tmp_path)
    assert not unfinished.due() and not Unfinished().due()
    now[0] = 30.0
    assert unfinished.due() and not Unfinished().due()
    monkeypatch.setattr(torch, "save", lambda _state, _file: now.append(now.pop() + 5))  # it takes five seconds
    unfinished.save({})
    now[0] += 99
    assert not unfinished.due()
    now[0] += 1
    assert unfinished.due()


@pytest.mark.parametrize("told", ["soon", "-1", "nan"])
def test_a_wrong_number_of_seconds_is_one_sentence(told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(module.SECONDS, told)
    with pytest.raises(UserError, match=f"{module.SECONDS} is '{told}': set it to a number of seconds"):
        seconds_between()


def test_a_finished_unit_is_made_once_and_is_gone_with_the_unfinished_folder(tmp_path: Path) -> None:
    made: list[int] = []

    def make() -> dict:
        made.append(1)
        return {"logits": torch.arange(3.0), "names": ["a"], "rate": 0.1}

    with pytest.raises(Killed), atomic_folder(tmp_path / "out", resume="key") as folder:
        first = kept(folder, "one", make)
        raise Killed
    with atomic_folder(tmp_path / "out", resume="key") as folder:
        again = kept(folder, "one", make)
        assert len(made) == 1 and torch.equal(first["logits"], again["logits"]) and again["rate"] == 0.1
        kept(None, "one", make)
        (folder / "result").write_text("whole")
    assert len(made) == 2 and [path.name for path in (tmp_path / "out").iterdir()] == ["result"]
    assert not (tmp_path / "out.partial").exists() and not (tmp_path / "out" / PARTS).exists()
