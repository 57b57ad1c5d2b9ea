import copy
import dataclasses
import math

import pytest
import timm
import torch
import yaml

from everycause.data.images import normalized
from everycause.data.sources import DataParams, open_split
from everycause.data.split import Split
from everycause.errors import UserError
from everycause.inference import logits_of
from everycause.models import Classifier
from everycause.training.counterfactuals import Removals
from everycause.training.fit import (
    PLAIN,
    BaseParams,
    Training,
    fit,
    step_terms,
    train_base,
)
from everycause.training.loss import LossParams, accuracy
from everycause.training.objectives import MaskedDistillation
from everycause.training.optimizer import has_statistics, optimizer, schedule, trainable_parameters, training_mode
from everycause.training.position import Position
from everycause.training.rows import ROWS, Row, goal_of, retrain
from everycause.training.steps import Order, training_steps
from tests.conftest import MODEL, ROOT, STATISTICS, make_classifier
from tests.training.invented import (
    AUGMENTATION,
    PARAMS,
    ROUNDS,
    WEIGHTS,
    invented_bank,
    invented_masks,
    invented_upstream,
    known,
    recipe,
)


@pytest.fixture
def small(train: Split) -> Split:
    return known(train.subset(torch.arange(96).numpy()).kept_in_memory(100))


@pytest.fixture
def validation(data_params: DataParams) -> Split:
    return known(open_split(data_params, "validation", 1))


def smoke_data() -> DataParams:
    return DataParams(**yaml.safe_load((ROOT / "profiles" / "smoke.yaml").read_text())["data"])


def trained(
    small: Split, validation: Split, row: str | None, seed: int = 0, weights: LossParams = WEIGHTS
) -> tuple[Classifier, list]:
    classifier = make_classifier()
    goal = PLAIN
    if row is not None:
        goal = goal_of(row, invented_upstream(small), recipe(smoke_data(), weights), seed)
    return classifier, list(fit(classifier, small, validation, PARAMS, seed, goal))


@pytest.mark.parametrize("row", ROWS)
def test_two_fits_from_one_seed_are_equal_to_the_last_bit(small: Split, validation: Split, row: str) -> None:
    (first, epochs), (second, again) = (trained(small, validation, row) for _ in range(2))
    assert all(
        torch.equal(*pair) for pair in zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    )
    assert epochs == again and [epoch.number for epoch in epochs] == [1, 2]
    other, _ = trained(small, validation, row, seed=1)
    assert not all(
        torch.equal(*pair) for pair in zip(first.state_dict().values(), other.state_dict().values(), strict=True)
    )


def test_continued_is_plain_training_and_filters_of_weight_zero_too(small: Split, validation: Split) -> None:
    plain, _ = trained(small, validation, None)
    zero = LossParams(lambda_augment=0.0, lambda_mc=0.0, lambda_nonmc=0.0, surrogate="sigmoid_threshold")
    for row, weights in (("continued", WEIGHTS), ("filters", zero)):
        other, _ = trained(small, validation, row, weights=weights)
        assert all(
            torch.equal(*pair) for pair in zip(plain.state_dict().values(), other.state_dict().values(), strict=True)
        ), row


@pytest.mark.parametrize(
    ("row", "terms"), [("continued", set()), ("filters", set()), ("masks", {"augment"}), ("joint", {"augment"})]
)
def test_every_term_of_a_row_is_recorded_by_name(small: Split, validation: Split, row: str, terms: set[str]) -> None:
    _, epochs = trained(small, validation, row)
    expected = {"loss", "cross_entropy", "mc", "nonmc", "active", *terms}  # the filter terms are watched in every row
    assert set(epochs[0].measures) == {f"train/{name}" for name in expected} | {"validation/accuracy"}


def test_a_row_with_an_objective_of_its_own_neither_reads_nor_records_filters(small: Split, validation: Split) -> None:
    def absent() -> None:
        raise UserError("they must not be read")

    upstream = dataclasses.replace(invented_upstream(small, validation), open_filters=absent, watch_filters=True)
    epochs = list(retrain("spectral_decoupling", upstream, recipe(smoke_data()), PARAMS, ROUNDS, 0))
    assert set(epochs[0].measures) == {f"train/{name}" for name in ("loss", "cross_entropy", "logits")} | {
        "validation/accuracy"
    }


def test_only_flipped_images_have_a_counterfactual_and_other_selectors_take_as_many_regions(
    small: Split, data_params: DataParams
) -> None:
    upstream = invented_upstream(small)
    goals = {row: goal_of(row, upstream, recipe(data_params), 0) for row in ROWS}
    own = goals["masks"].counterfactuals.pool.sets
    assert set(own) == set(upstream.masks.index[upstream.masks.flipped].tolist())
    for row in (row for row in ROWS if ROWS[row].removes not in (None, "counterfactual") and not ROWS[row].others):
        other = goals[row].counterfactuals.pool.sets
        assert set(other) == set(own) and all(int(own[i].sum()) == int(other[i].sum()) for i in own)
        assert any(not torch.equal(own[i], other[i]) for i in own)
    assert goals["masks_scene"].counterfactuals.scene and not goals["masks"].counterfactuals.scene
    assert goals["continued"].counterfactuals is None


def test_filters_are_the_classs_own_or_a_control_of_the_same_size(small: Split, data_params: DataParams) -> None:
    goals = {row: goal_of(row, invented_upstream(small), recipe(data_params), 0) for row in ROWS}
    own = invented_bank().histogram > 0
    assert torch.equal(goals["filters"].filters, own) and torch.equal(goals["joint"].filters, own)
    random, other = goals["filters_random"].filters, goals["filters_permuted"].filters
    assert torch.equal(random.sum(dim=1), own.sum(dim=1)) and not torch.equal(random, own)
    assert sorted(other.tolist()) == sorted(own.tolist()) and not any(
        torch.equal(*pair) for pair in zip(other, own, strict=True)
    )
    for row, goal in goals.items():
        assert (goal.weights.lambda_mc > 0) == (row in ("filters", "filters_random", "filters_permuted", "joint")), row


def test_a_training_whose_state_is_loaded_ends_as_if_it_had_not_stopped(
    small: Split, validation: Split, data_params: DataParams
) -> None:
    goal = goal_of("masks", invented_upstream(small), recipe(data_params), 0)

    def begun() -> Training:
        return Training(make_classifier(), small, validation, PARAMS, 0, "masks")

    whole = begun()
    epochs = [*whole.epochs(goal, 1), *whole.epochs(goal, 1)]
    stopped = begun()
    list(stopped.epochs(goal, 1))
    resumed = begun()
    resumed.load_state(copy.deepcopy(stopped.state()))
    assert list(resumed.epochs(goal, 1)) == epochs[1:]
    assert all(
        torch.equal(*pair)
        for pair in zip(whole.classifier.state_dict().values(), resumed.classifier.state_dict().values(), strict=True)
    )


def test_a_loss_that_is_not_finite_names_row_epoch_and_batch(small: Split, validation: Split) -> None:
    classifier = make_classifier()
    with torch.no_grad():
        classifier.network.get_classifier().bias.fill_(float("nan"))
    with pytest.raises(ValueError, match="row joint: the loss is nan at epoch 1, batch 1"):
        list(fit(classifier, small, validation, PARAMS, 0, row="joint"))


def test_a_row_of_masks_without_a_single_flip_is_refused(small: Split, data_params: DataParams) -> None:
    masks = dataclasses.replace(invented_masks(small), flipped=torch.zeros(40, dtype=torch.bool))
    with pytest.raises(ValueError, match="none of the 40 searched images changes its prediction"):
        goal_of("masks", invented_upstream(small, masks=masks), recipe(data_params), 0)


def test_the_oracle_needs_data_whose_parts_are_known(small: Split, data_params: DataParams) -> None:
    photos = data_params.model_copy(update={"source": "folder"})
    with pytest.raises(ValueError, match="leave it out of rows"):
        goal_of("oracle_parts", invented_upstream(small), recipe(photos), 0)


def test_training_learns_something(small: Split, validation: Split) -> None:
    _, epochs = trained(small, validation, None)
    assert epochs[-1].measures["train/loss"] < epochs[0].measures["train/loss"]


def test_biases_and_normalization_are_not_decayed() -> None:
    free, decayed = optimizer(make_classifier().network, PARAMS.optimizer).param_groups
    assert decayed["weight_decay"] == 0.05 and free["weight_decay"] == 0.0
    assert all(value.ndim > 1 for value in decayed["params"]) and all(value.ndim == 1 for value in free["params"])


def equal(first: Classifier, second: Classifier) -> bool:
    pairs = zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    return all(torch.equal(*pair) for pair in pairs)


def weights_of(classifier: Classifier) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in classifier.network.state_dict().items()}


@pytest.mark.parametrize(("names", "moving"), [(["head"], ("fc.",)), (["layer4", "head"], ("layer4.", "fc."))])
def test_only_what_is_trainable_moves_its_statistics_too_and_nothing_stays_frozen(
    small: Split, validation: Split, names: list[str], moving: tuple[str, ...]
) -> None:
    classifier = make_classifier()
    before = weights_of(classifier)
    list(fit(classifier, small, validation, PARAMS.model_copy(update={"trainable": names}), 0))
    for name, value in weights_of(classifier).items():
        assert torch.equal(value, before[name]) != name.startswith(moving), name
    assert all(value.requires_grad for value in classifier.parameters()) and not classifier.training


def test_what_learns_is_restored_after_an_exception() -> None:
    classifier = make_classifier()
    with pytest.raises(RuntimeError), training_mode(classifier, ["head"]):
        assert [name for name, value in classifier.network.named_parameters() if value.requires_grad] == [
            "fc.weight",
            "fc.bias",
        ]
        raise RuntimeError
    assert all(value.requires_grad for value in classifier.parameters()) and not any(
        module.training for module in classifier.modules()
    )


@pytest.mark.parametrize(
    ("names", "message"),
    [(["layer9"], "neither 'all' nor 'head' nor a module of test_resnet"), (["maxpool"], "holds no weights")],
)
def test_trainable_names_that_mean_nothing_are_refused(names: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        trainable_parameters(make_classifier(), names)


@pytest.mark.parametrize(("keep", "expected"), [("last", 3), ("best", 1)])
def test_the_result_is_the_last_epoch_or_the_first_of_the_best(
    small: Split, validation: Split, monkeypatch: pytest.MonkeyPatch, keep: str, expected: int
) -> None:
    accuracies = iter([0.2, 0.5, 0.5, 0.4])
    monkeypatch.setattr("everycause.training.fit.accuracy", lambda _logits, _labels: next(accuracies))
    states, classifier = [], make_classifier()
    for _ in fit(classifier, small, validation, PARAMS.model_copy(update={"epochs": 4, "keep": keep}), 0):
        states.append(weights_of(classifier))
    assert all(torch.equal(value, states[expected][name]) for name, value in weights_of(classifier).items())
    assert not torch.equal(states[1]["fc.weight"], states[3]["fc.weight"])


def test_the_base_trains_its_head_first_and_counts_all_epochs(small: Split, validation: Split) -> None:
    params = BaseParams(**PARAMS.model_dump(), head_epochs=2, head_learning_rate=0.01)
    classifier, epochs = train_base(MODEL, params, small, validation, 0, torch.device("cpu"))
    trunk, seen = classifier.network.conv1[0].weight.clone(), []
    for epoch in epochs:
        seen.append((epoch.number, torch.equal(classifier.network.conv1[0].weight, trunk)))
    assert seen == [(1, True), (2, True), (3, False), (4, False)]
    torch.rand(5)  # what ran before in the process must not matter
    again, epochs = train_base(MODEL, params, small, validation, 0, torch.device("cpu"))
    assert len(list(epochs)) == 4 and equal(classifier, again)


def test_a_constant_schedule_of_sgd_keeps_its_rate(small: Split, validation: Split) -> None:
    params = PARAMS.model_copy(
        update={"optimizer": PARAMS.optimizer.model_copy(update={"name": "sgd", "schedule": "constant"})}
    )
    training = Training(make_classifier(), small, validation, params, 0, "base")
    list(training.epochs(PLAIN, 1))
    assert isinstance(training.optimizer, torch.optim.SGD) and {
        group["lr"] for group in training.optimizer.param_groups
    } == {1e-3}


def test_what_timm_never_decays_is_not_decayed_also_under_a_linear_head() -> None:
    vit = timm.create_model("test_vit", num_classes=4, img_size=32)
    for network, prefix in ((vit, ""), (torch.nn.Sequential(vit), "0.")):
        names = {id(value): name for name, value in network.named_parameters()}
        free, decayed = (
            [names[id(value)] for value in group["params"]]
            for group in optimizer(network, PARAMS.optimizer).param_groups
        )
        assert f"{prefix}pos_embed" in free and f"{prefix}blocks.0.mlp.fc1.weight" in decayed


def test_the_optimizer_takes_trainable_weights_alone(small: Split, validation: Split) -> None:
    params = PARAMS.model_copy(update={"trainable": ["head"]})
    training = Training(make_classifier(), small, validation, params, 0, "base")
    groups = training.optimizer.param_groups
    assert sorted(tuple(value.shape) for group in groups for value in group["params"]) == [(4,), (4, 96)]


@pytest.mark.parametrize("names", [["head"], ["layer4"], ["all"]])
def test_dropout_is_active_wherever_weights_learn_and_only_their_statistics_do(names: list[str]) -> None:
    classifier = make_classifier()
    classifier.network.fc = torch.nn.Sequential(torch.nn.Dropout(0.5), classifier.network.fc)
    classifier.network.get_classifier = lambda: classifier.network.fc[1]
    with training_mode(classifier, names):
        assert classifier.network.fc[0].training
        for name, module in classifier.network.named_modules():
            if has_statistics(module):
                assert module.training == (names == ["all"] or name.startswith(tuple(names))), name


def test_dropout_draws_other_numbers_in_every_epoch_and_for_every_seed(small: Split, validation: Split) -> None:
    drawn = []
    for seed in (0, 1):
        training = Training(make_classifier(), small, validation, PARAMS, seed, "continued")
        training.position = Position(Order(len(small), training.generator))
        for training.epoch in (1, 2):
            with training._seeded():
                drawn.append(tuple(torch.rand(4).tolist()))
    assert len(set(drawn)) == 4


def test_an_epoch_with_dropout_does_not_depend_on_what_ran_before(small: Split, validation: Split) -> None:
    model = MODEL.model_copy(update={"dropout": 0.5})
    params = BaseParams(**PARAMS.model_dump(), head_epochs=0, head_learning_rate=0.01)
    made = []
    for draws in (0, 7):
        classifier, epochs = train_base(model, params, small, validation, 0, torch.device("cpu"))
        for _ in epochs:
            torch.rand(draws)
        made.append(classifier)
    assert equal(*made)
    other, epochs = train_base(MODEL, params, small, validation, 0, torch.device("cpu"))
    list(epochs)
    assert not equal(made[0], other)  # dropout does something


@pytest.mark.parametrize("steps", range(2, 31))
def test_a_warm_up_of_any_length_reaches_its_peak_at_its_last_step(steps: int) -> None:
    for warm in range(steps):
        params = PARAMS.optimizer.model_copy(update={"warmup": warm / steps})
        moved = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
        rates, changing = [], schedule(moved, params, steps)
        for _ in range(steps):
            rates.append(moved.param_groups[0]["lr"])
            moved.step()
            changing.step() if len(rates) < steps else None
        assert max(rates) <= params.learning_rate * (1 + 1e-9) and min(rates) > 0
        if warm >= 1:
            assert rates[warm - 1] == pytest.approx(params.learning_rate), (warm, steps)


def test_rows_that_need_no_masks_or_filters_train_without_them(small: Split, validation: Split) -> None:
    def absent() -> None:
        raise UserError("there are none: run the stage first")

    upstream = dataclasses.replace(
        invented_upstream(small, validation), open_masks=absent, open_filters=absent, watch_filters=False
    )
    others = ("object_exchange", "patch_replacement", "self_challenging", "spectral_decoupling", "group_dro")
    for row in ("continued", "erasing", "oracle_parts", *others):
        assert len(list(retrain(row, upstream, recipe(smoke_data()), PARAMS, ROUNDS, 0))) == PARAMS.epochs
    for row, what in (("filters", "filters"), ("joint", "filters"), ("masks", "masks"), ("masks_rounds", "masks")):
        with pytest.raises(UserError, match=f"the row '{row}' needs the {what} of the base: there are none"):
            retrain(row, upstream, recipe(smoke_data()), PARAMS, ROUNDS, 0)


def test_masked_distillation_sees_as_many_regions_of_other_images(small: Split, validation: Split) -> None:
    goal = goal_of("masked_distillation", invented_upstream(small, validation), recipe(smoke_data()), 0)
    assert isinstance(goal.objective, MaskedDistillation) and isinstance(goal.counterfactuals, Removals)
    index = torch.arange(1, 4)
    images = small.read(index.numpy())
    shown, _ = goal.counterfactuals.composed(index, images, small.labels[index], torch.Generator().manual_seed(0))
    lost = goal.counterfactuals.removed(index, torch.Generator().manual_seed(0))
    assert torch.equal(torch.where(lost[:, None], 0, shown), torch.where(lost[:, None], 0, images))
    everything = small.all()
    for image, gone in zip(shown, lost, strict=True):
        assert any(torch.equal(image[:, gone], other[:, gone]) for other in everything)


def test_rows_that_need_groups_are_refused_where_there_are_none() -> None:
    photographs = smoke_data().model_copy(update={"source": "folder"})
    with pytest.raises(
        UserError, match="the row 'group_dro' needs data whose groups are known .data.source: codebirds or waterbirds"
    ):
        ROWS["group_dro"].check(photographs)
    ROWS["group_dro"].check(smoke_data())
    ROWS["continued"].check(photographs)


def test_a_class_without_filters_stops_no_row_and_is_named(
    small: Split, validation: Split, caplog: pytest.LogCaptureFixture
) -> None:
    bank = invented_bank()
    bank.support[2] = 0
    upstream = dataclasses.replace(invented_upstream(small, validation), open_filters=lambda: bank)
    for row in ("continued", "masks"):
        assert goal_of(row, upstream, recipe(smoke_data()), 0).filters is not None
    assert not caplog.records
    for row in ("filters", "filters_random", "joint"):
        caplog.clear()
        assert goal_of(row, upstream, recipe(smoke_data()), 0).filters is not None
        assert f"row {row}: 1 of 4 classes ('class-2') have no filters" in caplog.text and len(caplog.records) == 1
    bank.support[:] = 0
    for row in ("filters", "filters_random", "joint"):
        with pytest.raises(UserError, match=f"the row '{row}' needs filters, and no class has any"):
            goal_of(row, upstream, recipe(smoke_data()), 0)


def test_a_new_row_is_one_entry(small: Split, validation: Split, monkeypatch: pytest.MonkeyPatch) -> None:
    class Inverted:
        probability = 1.0

        def covers(self, _index: int) -> bool:
            return True

        def composed(self, _index: object, images: torch.Tensor, labels: torch.Tensor, _generator: object) -> tuple:
            return 255 - images, labels

    monkeypatch.setitem(ROWS, "inverted", Row("inverted images", augments=lambda _upstream, _recipe, _seed: Inverted()))
    retraining = retrain("inverted", invented_upstream(small, validation), recipe(smoke_data()), PARAMS, ROUNDS, 0)
    assert all("train/augment" in epoch.measures for epoch in retraining)
    pictures = retraining.pictures()
    assert torch.equal(pictures.counterfactuals, 255 - pictures.images)


def test_an_unknown_row_is_refused(small: Split) -> None:
    with pytest.raises(UserError, match="'jiont' is not a retraining row"):
        retrain("jiont", invented_upstream(small), recipe(smoke_data()), PARAMS, ROUNDS, 0)


def test_the_head_is_every_last_layer_of_a_network_with_several() -> None:
    params = MODEL.model_copy(update={"name": "deit_tiny_distilled_patch16_224", "explained_layer": "norm"})
    classifier = Classifier(params, ("a", "b"), 32, STATISTICS)
    found = {id(value) for value in trainable_parameters(classifier, ["head"])}
    names = [name for name, value in classifier.network.named_parameters() if id(value) in found]
    assert names == ["head.weight", "head.bias", "head_dist.weight", "head_dist.bias"]


def test_layer_decay_lowers_the_rate_from_the_head_down_and_reaches_every_weight(small: Split) -> None:
    classifier = make_classifier()
    params = PARAMS.optimizer.model_copy(update={"layer_decay": 0.5, "learning_rate": 0.01})
    made = optimizer(classifier.network, params)
    rates = {id(value): group["lr"] for group in made.param_groups for value in group["params"]}
    assert len(rates) == len(list(classifier.network.parameters()))
    head, stem = classifier.network.get_classifier().weight, next(classifier.network.parameters())
    assert rates[id(head)] == pytest.approx(0.01) and rates[id(stem)] < 0.01
    assert {round(math.log2(0.01 / rate), 6) % 1 for rate in rates.values()} == {0.0}  # powers of one half
    steps = schedule(made, params, 10)
    peaks = {id(group["params"][0]): 0.0 for group in made.param_groups}
    for _ in range(10):
        for group in made.param_groups:
            place = id(group["params"][0])
            peaks[place] = max(peaks[place], group["lr"])
        made.step()
        steps.step()
    assert all(peaks[place] == pytest.approx(rates[place], rel=1e-6) for place in peaks)
    plain = optimizer(classifier.network, PARAMS.optimizer)
    assert {group["lr"] for group in plain.param_groups} == {PARAMS.optimizer.learning_rate}


def test_frozen_statistics_stand_still_and_the_weights_do_not(small: Split, validation: Split) -> None:
    classifier = make_classifier()
    before = {name: value.clone() for name, value in classifier.network.state_dict().items()}
    params = PARAMS.model_copy(update={"frozen_statistics": True, "epochs": 1})
    list(fit(classifier, small, validation, params, 0))
    for name, value in classifier.network.state_dict().items():
        moves = "running_" not in name and "num_batches" not in name
        assert torch.equal(value, before[name]) != moves, name


def test_the_average_of_the_weights_is_the_result_and_what_is_validated(small: Split, validation: Split) -> None:
    plain, averaged = make_classifier(), make_classifier()
    list(fit(plain, small, validation, PARAMS, 0))
    params = PARAMS.model_copy(update={"average": 0.9})
    reference = make_classifier()
    training = Training(reference, small, validation, params, 0, "base")
    expected = {name: value.clone().double() for name, value in reference.network.state_dict().items()}
    inner = training.schedule.step

    def counted() -> None:  # called once a step, after the optimizer's
        inner()
        for name, value in reference.network.state_dict().items():
            expected[name] = 0.9 * expected[name] + 0.1 * value.double()

    training.schedule.step = counted
    list(training.epochs(PLAIN, params.epochs))
    epochs = list(fit(averaged, small, validation, params, 0))
    assert torch.equal(reference.network.state_dict()["fc.weight"], plain.network.state_dict()["fc.weight"])
    for name, value in averaged.network.state_dict().items():
        if value.is_floating_point():
            assert torch.allclose(value.double(), expected[name], atol=1e-5), name
    assert epochs[-1].measures["validation/accuracy"] == accuracy(logits_of(averaged, validation), validation.labels)


def test_smoothed_labels_are_those_of_torch(small: Split) -> None:
    classifier = make_classifier()
    step = next(training_steps(small, 16, AUGMENTATION, None, torch.Generator().manual_seed(0)))
    terms = step_terms(classifier, step, PLAIN, 0.2)
    logits = classifier(normalized(step.images, classifier.statistics, classifier.device))
    shares = 0.8 * torch.nn.functional.one_hot(step.labels, 4) + 0.2 / 4
    expected = -(shares * logits.log_softmax(dim=1)).sum(dim=1).mean()
    assert terms["loss"].item() == pytest.approx(expected.item(), rel=1e-6)
    assert step_terms(classifier, step, PLAIN)["loss"].item() != terms["loss"].item()
