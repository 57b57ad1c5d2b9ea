from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
import torch

from codebirds.birds import Codebirds
from everycause.data.images import Statistics, normalized
from everycause.data.sources import DataParams
from everycause.data.split import Split
from everycause.errors import UserError
from everycause.explanation.masks import Masks, searched
from everycause.explanation.prior import ImageNoise, LowPassPrior
from everycause.explanation.regions import grid
from everycause.models import Classifier
from everycause.training import background
from everycause.training.background import (
    Bank,
    Inpainting,
    MeanColor,
    OwnScene,
    background_bank,
    background_images,
    background_of,
    neighborhood,
)
from everycause.training.counterfactuals import (
    PATCHES,
    CutMix,
    Erasing,
    OracleParts,
    PatchReplacement,
    Pool,
    Removals,
)
from everycause.training.examples import NO_PART, decisions, example_pictures, parts_of
from everycause.training.steps import AugmentationParams, training_steps
from tests.explanation.painting import toy_prior
from tests.explanation.searching import PARAMS, always_right, undecided
from tests.training.invented import BACKGROUND, invented_masks
from tests.training.invented import PARAMS as TRAINING

REGIONS = 16


def shifted(pixels: int) -> AugmentationParams:
    return TRAINING.augmentation.model_copy(update={"shift": pixels})


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def removals(train: Split) -> Removals:
    """Masks for the first forty images, two or three regions each."""
    masks = invented_masks(train)
    pool = Pool(dict(enumerate(masks.removed[:, None])), masks.partition, {}, True)
    return Removals(pool, background_bank(train, masks, BACKGROUND), 1.0)


def test_only_removed_pixels_change_and_come_from_one_background_image(train: Split, removals: Removals) -> None:
    index = torch.arange(6)
    images, labels = train.read(index.numpy()), train.labels[index]
    composed, kept_labels = removals.composed(index, images, labels, generator(1))
    assert torch.equal(kept_labels, labels)
    for row in range(6):
        removed = removals.pool.sets[row][0][removals.pool.partition[0]]
        assert torch.equal(composed[row][:, ~removed], images[row][:, ~removed])
        assert any(
            torch.equal(one[:, removed], composed[row][:, removed]) for one in removals.background.background_images
        )


def test_an_empty_set_changes_nothing_and_a_full_one_everything(train: Split) -> None:
    images, labels, index = train.read(np.arange(2)), train.labels[:2], torch.arange(2)
    gray = MeanColor(Statistics((128 / 255,) * 3, (0.2,) * 3))
    for filled, expected in ((torch.zeros, images), (torch.ones, torch.full_like(images, 128))):
        pool = Pool({i: filled(1, REGIONS, dtype=torch.bool) for i in range(2)}, grid(32, 4)[None], {}, True)
        assert torch.equal(Removals(pool, gray, 1.0).composed(index, images, labels, generator())[0], expected)


def test_a_background_image_shows_nothing_but_background() -> None:
    cells = grid(14, 3)
    images = torch.zeros(2, 3, 14, 14, dtype=torch.uint8)
    background = torch.rand(2, 9, generator=generator()) < 0.5
    background[:, 4], background[:, 0] = False, True
    for row in range(2):
        images[row, :, ~background[row][cells]] = 200
        images[row, 0][background[row][cells]] = (10 * cells + 1)[background[row][cells]].to(torch.uint8)
    made = background_images(images, background, cells)
    assert made.max() < 200
    assert torch.equal(made[:, :, background[0][cells]][0], images[:, :, background[0][cells]][0])


def test_a_place_is_background_where_it_matters_little_to_all_and_lies_away_from_the_set(train: Split) -> None:
    masks = invented_masks(train)
    corner = torch.zeros(40, REGIONS)
    corner[:, :12] = 1.0  # the lowest line of the grid matters least, to every image
    masks.effect.copy_(corner)
    masks.order.fill_(-1)
    masks.order[:, 0] = 0  # far away from it
    bank = background_bank(train, masks, BACKGROUND.model_copy(update={"share": 0.25}))
    images = train.read(np.arange(40))
    assert torch.equal(bank.background_images[:, :, 24:], images[:, :, 24:])
    cell = bank.background_images[5, :, :8, :8]
    assert any(torch.equal(cell, images[5, :, 24:, x : x + 8]) for x in (0, 8, 16, 24))
    masks.order[:, 0] = 8  # its neighbor below is no background any more
    with pytest.raises(ValueError, match="raise background.share"):
        background_bank(train, masks, BACKGROUND.model_copy(update={"share": 0.25}))


@pytest.mark.parametrize("most", [1200, 9, 2])
def test_a_bank_made_in_parts_is_that_of_all_masks_at_once(
    train: Split, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    masks = invented_masks(train)
    across, params = 4, BACKGROUND
    cells = grid(train.image_size, across)
    indicator = torch.nn.functional.one_hot(cells.flatten(), across**2).float()
    by_pixel = masks.effect.gather(1, masks.partition.expand(len(masks.index), -1, -1).flatten(1))
    by_cell = by_pixel @ (indicator / indicator.sum(dim=0))
    unimportant = by_cell.mean(dim=0).argsort(stable=True).argsort() < round(params.share * across**2)
    near = (neighborhood(masks.pixels(masks.removed), across).flatten(1).float() @ indicator) > 0
    own = unimportant & ~near
    sources = (own.sum(dim=1) >= min(4, int(unimportant.sum()))).nonzero()[:, 0]
    by_turns = sorted(sources.tolist(), key=lambda row: (masks.index[row] // train.num_classes, row))[:most]
    expected = background_images(train.read(masks.index[sorted(by_turns)].numpy()), own[sorted(by_turns)], cells)
    assert torch.equal(train.labels, torch.arange(len(train)) % train.num_classes) and len(sources) > 9
    monkeypatch.setattr(background, "MOST_BACKGROUNDS", most)
    for together in (1000, 7):
        monkeypatch.setattr(background, "JUDGED_TOGETHER", together)
        assert torch.equal(background_bank(train, masks, params).background_images, expected)


def test_the_images_of_a_full_bank_do_not_all_come_from_the_first_class(
    train: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    by_class = train.subset(train.labels.argsort(stable=True).numpy())  # as the folders of photographs are read
    count = len(by_class)
    masks = invented_masks(by_class, count)
    monkeypatch.setattr(background, "MOST_BACKGROUNDS", 16)
    assert len(background_bank(by_class, masks, BACKGROUND).labels.unique()) > 2


def test_the_neighborhood_is_a_regions_width() -> None:
    pixels = torch.zeros(1, 12, 12, dtype=torch.bool)
    pixels[0, 6, 6] = True
    near = neighborhood(pixels, 4)
    assert near.sum() == 49 and near[0, 3:10, 3:10].all()


def test_source_images_follow_the_wish_for_a_class(train: Split) -> None:
    masks = invented_masks(train)
    for wanted, expected in (("other_class", {0, 1, 3}), ("same_class", {2}), ("any_class", {0, 1, 2, 3})):
        bank = background_bank(train, masks, BACKGROUND.model_copy(update={"source_classes": wanted}))
        colored = Bank(
            bank.labels.to(torch.uint8)[:, None, None, None].expand_as(bank.background_images).contiguous(),
            bank.labels,
            bank.source_classes,
            bank.classes,
        )
        drawn = colored.draw(
            bank.background_images[:1].expand(200, -1, -1, -1),
            torch.zeros(200, 32, 32, dtype=torch.bool),
            torch.full((200,), 2),
            generator(),
        )
        assert set(drawn[:, 0, 0, 0].tolist()) == expected
    one = bank.labels == 1
    with pytest.raises(ValueError, match="source_classes is 'other_class'"):
        Bank(bank.background_images[one], bank.labels[one], "other_class", 4)


def test_source_images_are_independent_of_the_class(removals: Removals) -> None:
    images, nothing = (
        removals.background.background_images[:1].expand(50, -1, -1, -1),
        torch.zeros(50, 32, 32, dtype=torch.bool),
    )
    first = removals.background.draw(images, nothing, torch.zeros(50, dtype=torch.int64), generator())
    assert torch.equal(first, removals.background.draw(images, nothing, torch.full((50,), 3), generator()))


def test_the_own_fill_takes_its_colors_from_what_is_left() -> None:
    images = torch.full((1, 3, 32, 32), 60, dtype=torch.uint8)
    removed = torch.zeros(1, 32, 32, dtype=torch.bool)
    removed[:, 8:24, 8:24] = True
    images[:, :, 8:24, 8:24] = 250
    assert OwnScene().draw(images, removed, torch.tensor([0]), generator()).sub(60).abs().max() <= 1


def test_the_own_fill_of_a_large_object_is_never_black() -> None:
    images = torch.full((2, 3, 64, 64), 60, dtype=torch.uint8)
    removed = torch.ones(2, 64, 64, dtype=torch.bool)
    removed[0, :, :8] = False  # all that is kept lies at the left border; of the second image nothing is kept
    filled = OwnScene().draw(images, removed, torch.tensor([0, 0]), generator())
    assert filled[0].float().sub(60).abs().max() <= 1
    assert filled[1].unique().tolist() == [128]


def test_every_source_of_fill_is_at_hand(train: Split) -> None:
    statistics = Statistics((0.5,) * 3, (0.2,) * 3)
    kinds = {
        source: type(
            background_of(invented_masks(train), train, statistics, BACKGROUND.model_copy(update={"source": source}))
        )
        for source in ("bank", "own", "mean")
    }
    assert kinds == {"bank": Bank, "own": OwnScene, "mean": MeanColor}
    painted = BACKGROUND.model_copy(update={"source": "prior"})
    assert isinstance(background_of(invented_masks(train), train, statistics, painted, LowPassPrior), Inpainting)
    with pytest.raises(UserError, match="background.source 'prior' is for the stage retrain alone"):
        background_of(invented_masks(train), train, statistics, painted)


def test_a_prior_paints_what_was_removed_and_keeps_the_rest() -> None:
    images = torch.randint(0, 256, (3, 3, 8, 8), generator=generator(), dtype=torch.uint8)
    removed, labels = torch.zeros(3, 8, 8, dtype=torch.bool), torch.zeros(3, dtype=torch.int64)
    removed[:2, 2:6, 1:5] = True  # the third image loses nothing
    background, kept = Inpainting(toy_prior(tau=8, chain=10)), ~removed[:, None].expand_as(images)
    drawn = background.draw(images, removed, labels, generator())
    assert torch.equal(drawn[kept], images[kept]) and (drawn != images)[:2].flatten(1).any(dim=1).all()
    assert torch.equal(drawn, background.draw(images, removed, labels, generator()))
    once_more = background.draw(images, removed, labels, torch.Generator().manual_seed(5))
    assert not torch.equal(drawn, once_more)
    # the removed pixels are not looked at
    other = torch.where(removed[:, None], 255 - images, images)
    assert torch.equal(drawn, background.draw(other, removed, labels, generator()))


def test_a_prior_that_takes_one_step_paints_what_its_formula_says() -> None:
    prior = toy_prior(tau=1, chain=10, eta=0.0)
    images = torch.randint(0, 256, (1, 3, 8, 8), generator=generator(), dtype=torch.uint8)
    removed, labels = torch.ones(1, 8, 8, dtype=torch.bool), torch.zeros(1, dtype=torch.int64)
    removed[0, :, 4:] = False
    drawn = Inpainting(prior).draw(images, removed, labels, generator())
    begun = OwnScene().draw(images, removed, labels, generator())
    begun = torch.where(removed[:, None], begun, images) / 255
    draws = ImageNoise(torch.randint(2**31, (1,), generator=generator()).tolist(), 8, torch.device("cpu"))
    share = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000), dim=0)[0]  # the last step of the chain is step 0
    noisy = share.sqrt() * (2 * begun - 1) + (1 - share).sqrt() * draws.draw()
    with torch.no_grad():
        clean = (noisy - (1 - share).sqrt() * prior.denoiser(noisy, torch.zeros(1))) / share.sqrt()
    slow = torch.where(removed[:, None], ((clean.clamp(-1, 1) + 1) / 2 * 255).round(), images.float())
    assert (drawn.float() - slow).abs().max() <= 1


def test_a_pool_grows_by_new_sets_and_draws_each_of_them_or_none(train: Split) -> None:
    masks = invented_masks(train)
    pool = Pool({}, masks.partition, {}, True).joined(masks)
    assert pool.joined(masks).sets[1].shape == (1, REGIONS)  # the same set again is no new one
    moved = masks.rows(torch.arange(40))
    moved.order.copy_((masks.order + 1).remainder(16).where(masks.order >= 0, -1))
    two = pool.joined(moved)
    assert two.sets[1].shape == (2, REGIONS) and set(two.sets) == set(masks.index[masks.flipped].tolist())
    drawn = two.draw(torch.ones(400, dtype=torch.int64), generator(), none=True)
    counts = {tuple(row) for row in drawn.tolist()}
    assert counts == {tuple(row) for row in two.sets[1].tolist()} | {(False,) * REGIONS}
    assert 0.25 < drawn.any(dim=1).logical_not().double().mean() < 0.42
    assert two.draw(torch.ones(50, dtype=torch.int64), generator(), none=False).any(dim=1).all()
    assert torch.equal(two.known(torch.tensor([1]))[0], two.sets[1].any(dim=0))


def test_a_new_scene_surrounds_what_is_kept(train: Split, removals: Removals) -> None:
    index = torch.arange(4)
    images = train.read(index.numpy())
    scene = Removals(removals.pool, MeanColor(Statistics((0.0,) * 3, (0.2,) * 3)), 1.0, scene=True, none=True)
    lost = []
    for seed in range(8):
        composed, _ = scene.composed(index, images, train.labels[:4], generator(seed))
        for row in range(4):
            known = removals.pool.sets[row][0][removals.pool.partition[0]]
            near = neighborhood(known[None], 4)[0]
            assert (composed[row][:, ~near] == 0).all() and torch.equal(
                composed[row][:, near & ~known], images[row][:, near & ~known]
            )
            lost.append(bool((composed[row][:, known] == 0).all()))
    assert {True, False} == set(lost)


@pytest.mark.parametrize("rate", (1.0, 0.5))
def test_every_step_has_the_same_number_of_images_whatever_the_row(
    train: Split, data_params: DataParams, removals: Removals, rate: float
) -> None:
    some = Removals(removals.pool, removals.background, rate)
    oracle = OracleParts(Codebirds(data_params.codebirds.settings), rate)
    for counterfactuals in (
        None,
        some,
        oracle,
        Erasing((0.5, 0.5, 0.5), rate),
        CutMix(4, rate),
        PatchReplacement(train, rate),
    ):
        seen = 0
        for step in islice(training_steps(train, 32, shifted(2), counterfactuals, generator()), 10):
            assert len(step.images) + len(step.counterfactuals) == 32
            assert len(step.labels) == len(step.images) and len(step.counterfactual_labels) == len(step.counterfactuals)
            seen += len(step.counterfactuals)
        assert (seen > 0) == (counterfactuals is not None)


def test_a_counterfactual_shares_mirror_and_shift_with_its_original(train: Split) -> None:
    nothing = Pool(
        {i: torch.zeros(1, REGIONS, dtype=torch.bool) for i in range(len(train))}, grid(32, 4)[None], {}, True
    )
    step = next(training_steps(train, 32, shifted(3), Removals(nothing, OwnScene(), 1.0), generator()))
    assert torch.equal(step.images, step.counterfactuals) and torch.equal(step.labels, step.counterfactual_labels)


def test_erasing_and_cutmix_follow_the_generator_and_leave_torchs_own_alone(train: Split) -> None:
    index = torch.arange(16)
    images, labels = train.read(index.numpy()), train.labels[index]
    before = torch.random.get_rng_state()
    erased, same = Erasing((0.0, 0.0, 0.0), 1.0).composed(index, images, labels, generator())
    mixed, shares = CutMix(4, 1.0).composed(index, images, labels, generator())
    assert torch.equal(before, torch.random.get_rng_state())
    assert (
        torch.equal(same, labels)
        and ((erased != images).any(dim=1).flatten(1).any(dim=1)).all()
        and (erased[erased != images] == 0).all()
    )
    assert torch.allclose(shares.sum(dim=1), torch.ones(16)) and (shares.gather(1, labels[:, None]) > 0).all()
    assert torch.equal(mixed, CutMix(4, 1.0).composed(index, images, labels, generator())[0])


def test_replaced_patches_are_those_of_another_image_in_the_same_place(train: Split) -> None:
    index = torch.arange(30)
    images, labels = train.read(index.numpy()), train.labels[index]
    shown, same = PatchReplacement(train, 1.0).composed(index, images, labels, generator())
    cells, everything = grid(32, PATCHES), train.all()
    assert torch.equal(same, labels)
    shares = []
    for image, now in zip(images, shown, strict=True):
        lost = [cell for cell in range(PATCHES**2) if not torch.equal(image[:, cells == cell], now[:, cells == cell])]
        there = torch.isin(cells, torch.tensor(lost))
        assert any(torch.equal(now[:, there], other[:, there]) for other in everything)
        shares.append(len(lost) / PATCHES**2)
    assert max(shares) < 0.75 and min(shares) < 0.25 and 0.2 < sum(shares) / len(shares) < 0.4


def test_the_oracle_takes_parts_away_and_the_scene_tells_nothing(data_params: DataParams, train: Split) -> None:
    birds = Codebirds(data_params.codebirds.settings)
    index = torch.arange(200)
    images = train.read(index.numpy())
    composed, labels = OracleParts(birds, 1.0).composed(index, images, train.labels[index], generator())
    assert torch.equal(labels, train.labels[index]) and ((composed != images).flatten(1).any(dim=1)).all()
    parts = torch.from_numpy(birds.part_masks(birds.factors("train", index.numpy())))
    background = ~parts.any(dim=1)
    changed = ((composed != images).any(dim=1) & background).flatten(1).double().mean(dim=1) > 0.3
    assert 0.6 < changed.double().mean() < 1  # one scene in four is the one it had


def test_the_stream_shows_every_image_once_per_round(train: Split) -> None:
    held = train.subset(np.arange(64))
    steps = list(islice(training_steps(held, 16, shifted(0), None, generator()), 4))
    assert torch.equal(torch.cat([step.labels for step in steps]).bincount(), held.labels.bincount())


def test_images_with_partitions_of_their_own_lose_the_same_pixels_in_training_as_in_the_search(train: Split) -> None:
    classifier = undecided(train)
    split = always_right(train, classifier, 24)
    masks = Masks.joined(
        list(searched(classifier, split, torch.arange(24), PARAMS.model_copy(update={"partition": "slico"})))
    )
    assert len(masks.partition) == 24 and masks.flipped.any()
    flips = masks.rows(masks.flipped.nonzero()[:, 0])
    pool = Pool({}, masks.partition[:0], {}, False).joined(masks)
    expected = flips.pixels(flips.removed)
    assert torch.equal(pool.pixels(flips.index, pool.draw(flips.index, generator(), none=False)), expected)
    composed, _ = Removals(pool, background_bank(split, masks, BACKGROUND), 1.0).composed(
        flips.index, split.read(flips.index.numpy()), flips.runner_up, generator()
    )
    assert torch.equal(
        composed.permute(0, 2, 3, 1)[~expected], split.read(flips.index.numpy()).permute(0, 2, 3, 1)[~expected]
    )


def test_two_rounds_of_one_flip_each_keep_both_partitions(train: Split) -> None:
    masks = invented_masks(train)
    own = [masks.rows(torch.tensor([row])) for row in (1, 2)]
    first, second = (
        replace(one, shared=False, partition=one.partition.roll(shift, dims=2))
        for one, shift in zip(own, (0, 9), strict=True)
    )
    pool = Pool({}, first.partition[:0], {}, False).joined(first).joined(second)
    index = torch.tensor([1, 2])
    expected = torch.cat([first.pixels(first.removed), second.pixels(second.removed)])
    assert torch.equal(pool.pixels(index, torch.cat([first.removed, second.removed])), expected)


def photographic(**changes: float) -> AugmentationParams:
    return TRAINING.augmentation.model_copy(update=changes)


@pytest.mark.parametrize(
    "changes", [{"resized_crop": 0.3}, {"color_jitter": 0.8}, {"resized_crop": 0.5, "color_jitter": 0.5}]
)
def test_a_counterfactual_shares_crop_and_colors_with_its_original(train: Split, changes: dict[str, float]) -> None:
    nothing = Pool(
        {i: torch.zeros(1, REGIONS, dtype=torch.bool) for i in range(0, len(train), 2)}, grid(32, 4)[None], {}, True
    )
    kept = Removals(nothing, OwnScene(), 1.0)
    step = next(training_steps(train, 32, photographic(**changes), kept, generator()))
    plain = next(training_steps(train, 32, photographic(), kept, generator()))
    paired = [
        row for row, image in enumerate(plain.images) if any(torch.equal(image, one) for one in plain.counterfactuals)
    ]
    assert 0 < len(step.counterfactuals) < len(step.images)
    assert torch.equal(step.images[paired], step.counterfactuals) and torch.equal(step.labels, plain.labels)
    assert (step.images != plain.images).flatten(1).any(dim=1).double().mean() > 0.9
    assert step.images.shape == plain.images.shape and step.images.dtype == torch.uint8
    again = next(training_steps(train, 32, photographic(**changes), kept, generator()))
    assert torch.equal(step.images, again.images)


def test_a_slight_jitter_of_colors_changes_little(train: Split) -> None:
    plain = next(training_steps(train, 16, photographic(), None, generator()))
    slight = next(training_steps(train, 16, photographic(color_jitter=0.02), None, generator()))
    assert (plain.images.int() - slight.images.int()).abs().max() < 24


def test_photograph_augmentation_is_checked() -> None:
    for changes in ({"resized_crop": 1.5}, {"color_jitter": -0.1}):
        with pytest.raises(ValueError, match="less than or equal to 1|greater than or equal to 0"):
            AugmentationParams(**{**TRAINING.augmentation.model_dump(), **changes})


def test_pictures_tell_what_a_model_sees_and_where_the_parts_are(
    train: Split, removals: Removals, classifier: Classifier, data_params: DataParams
) -> None:
    made = example_pictures(removals, train, 3)
    assert made is not None
    seen = decisions(classifier, made)
    inputs = normalized(train.read(made.index.numpy()), classifier.statistics, classifier.device)
    with torch.no_grad():
        expected = torch.cat([classifier(one[None]).softmax(dim=1) for one in inputs])
    for one, row, label in zip(seen, expected, made.labels.tolist(), strict=True):
        assert one["images"]["probability"] == pytest.approx(float(row[label]), abs=1e-6)
        assert one["images"]["class"] == classifier.class_names[int(row.argmax())]
    parts = parts_of(made, data_params, 1)
    birds = Codebirds(data_params.codebirds.settings)
    masks = birds.part_masks(birds.factors("train", made.index.numpy()))
    assert parts is not None and (parts.numpy() != NO_PART).sum() == masks.any(axis=1).sum()
    for part in range(masks.shape[1]):  # where parts overlap the first one is shown
        assert (parts.numpy()[masks[:, part] & ~masks[:, :part].any(axis=1)] == part).all()


def test_pictures_show_what_was_replaced_one_image_a_class(train: Split, removals: Removals) -> None:
    state = torch.random.get_rng_state()
    made = example_pictures(removals, train, 3)
    assert len(set(made.titles)) == len(made.titles) == 4 and torch.equal(state, torch.random.get_rng_state())
    outside = ~made.removed[:, None].expand_as(made.images)
    assert torch.equal(made.images[outside], made.counterfactuals[outside]) and made.removed.flatten(1).any(dim=1).all()
    again = example_pictures(removals, train, 3)
    assert torch.equal(made.counterfactuals, again.counterfactuals) and torch.equal(made.removed, again.removed)
    erased = example_pictures(Erasing((0.0, 0.0, 0.0), 1.0), train, 3)
    assert torch.equal((erased.images != erased.counterfactuals).any(dim=1), erased.removed)
    assert example_pictures(Removals(Pool({}, grid(32, 4)[None], {}, True), OwnScene(), 1.0), train, 3) is None
