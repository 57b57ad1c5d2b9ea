import hashlib
from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import mutual_info_score

from codebirds.birds import CHUNK, Codebirds, swapped, variations
from codebirds.factors import DRAWS, NUM_DRAWS, WORLDS, Settings, erased
from codebirds.glyphs import CUES
from codebirds.painting import RENDITIONS, SKETCH, STYLES, _part_colors, noise_bank


def test_images_do_not_depend_on_chunking_order_or_threads(default_birds: Codebirds) -> None:
    factors = default_birds.factors("train", np.arange(CHUNK + 9))
    together = default_birds.images(factors)
    shuffled = np.random.default_rng(0).permutation(len(together))
    assert np.array_equal(default_birds.images(factors.rows(shuffled)), together[shuffled])
    assert np.array_equal(default_birds.images(factors.rows(slice(7, 8))), together[7:8])
    assert np.array_equal(replace(default_birds, threads=2).images(factors), together)
    assert np.array_equal(default_birds.images(default_birds.factors("train", np.array([5, 3]))), together[[5, 3]])


@pytest.mark.parametrize(
    ("world", "frozen"),
    [("additive", "9620b62315cd0fad"), ("premise", "8a8c21dbd9262847"), ("confounded", "d337f0c7ed1806f2")],
)
def test_the_bytes_of_named_worlds_are_frozen(world: str, frozen: str) -> None:
    birds, digest = Codebirds(Settings(world=world, **WORLDS[world])), hashlib.sha256()
    for _, factors in list(variations(birds))[:14]:
        digest.update(birds.images(factors.rows(slice(0, 16))).tobytes())
    assert digest.hexdigest()[:16] == frozen


def test_classes_are_balanced_and_every_image_shows_its_codeword(default_birds: Codebirds) -> None:
    factors = default_birds.factors("test")
    assert set(np.bincount(factors.label)) == {default_birds.settings.test // 16}
    assert np.array_equal(factors.variants, default_birds.code.words[factors.label])


def test_the_scene_follows_the_class_as_often_as_params_say(default_birds: Codebirds) -> None:
    factors = default_birds.factors("train")
    expected = default_birds.settings.scene_correlation * 15 / 16 + 1 / 16
    assert factors.conforms(16).mean() == pytest.approx(expected, abs=0.015)
    free = default_birds.free_scene(factors)
    assert mutual_info_score(free, factors.label) < 2 * 15 * 15 / 2 / len(
        free
    )  # the plug-in estimate's own bias, twice


def test_scene_banks_of_the_splits_are_disjoint(default_birds: Codebirds) -> None:
    banks = [noise_bank(default_birds.key(split + " scenes"), 64) for split in ("train", "validation", "test")]
    fields = {field.tobytes() for bank in banks for field in bank}
    assert len(fields) == sum(map(len, banks))


@pytest.mark.parametrize("part", range(5))
def test_color_tells_the_variant_of_the_hue_cue_only(default_birds: Codebirds, part: int) -> None:
    factors = default_birds.factors("train")
    color, second = _part_colors(default_birds, factors, part)
    for shade in (color, second):
        bins = (shade * 3.999).astype(int) @ np.array([16, 4, 1])
        information = mutual_info_score(bins, factors.variants[:, part])
        if CUES[part].hue and shade is color:
            assert information > 0.5
        else:
            assert information < 0.035  # bias of the plug-in estimate: 63 · 3 / 2 / 3600 = 0.026


@pytest.mark.parametrize("style", (*RENDITIONS, SKETCH))
def test_in_renditions_and_sketches_not_even_the_hue_cue_has_a_telling_color(
    default_birds: Codebirds, style: int
) -> None:
    factors = default_birds.factors("train")
    color, _ = _part_colors(default_birds, replace(factors, style=np.full_like(factors.style, style)), 0)
    bins = (color * 3.999).astype(int) @ np.array([16, 4, 1])
    assert mutual_info_score(bins, factors.variants[:, 0]) < 0.035


def test_erasing_a_part_changes_pixels_of_that_part_and_its_rim_only(default_birds: Codebirds) -> None:
    factors = default_birds.factors("test", np.arange(32))
    whole, parts = default_birds.images(factors), default_birds.part_masks(factors)
    for part in range(5):
        without = default_birds.images(erased(factors, (part,)))
        changed = (whole != without).any(axis=1)
        grown = np.pad(parts[:, part], ((0, 0), (3, 3), (3, 3)))
        near = np.any([grown[:, dy : dy + 64, dx : dx + 64] for dy in range(7) for dx in range(7)], axis=0)
        assert changed.any(axis=(1, 2)).all()
        beyond = (changed & ~near & ~parts.any(axis=1)).sum(
            axis=(1, 2)
        )  # horns thinner than a pixel have no visible pixel of their own
        assert beyond.max() <= 4 and beyond.mean() < 1
        assert not default_birds.part_masks(erased(factors, (part,)))[:, part].any()


def test_without_parts_all_classes_look_alike(default_birds: Codebirds) -> None:
    factors = default_birds.factors("test", np.arange(16))
    bare = erased(replace(factors, scene=np.zeros_like(factors.scene)), tuple(range(5)))
    other = replace(bare, label=(bare.label + 1) % 16, variants=default_birds.code.words[(bare.label + 1) % 16])
    assert np.array_equal(default_birds.images(bare), default_birds.images(other))


def test_shifted_splits_keep_the_poses_of_the_test_split(default_birds: Codebirds) -> None:
    shown = dict(variations(default_birds))
    test = shown["test"]
    assert len(shown) == 1 + 2 + 4 + 31 + 2
    for factors in shown.values():
        assert np.array_equal(factors.draws, test.draws) and np.array_equal(factors.label, test.label)
    assert set(np.unique(shown["renditions"].style)) == set(RENDITIONS)
    assert (shown["scene_shift/opposed"].scene != test.label).all()
    assert STYLES[SKETCH] == "sketch" and (shown["sketch"].style == SKETCH).all()


@pytest.mark.parametrize("size", (1, 2))
def test_swapped_birds_differ_from_their_codeword_in_at_most_so_many_parts(default_birds: Codebirds, size: int) -> None:
    factors = default_birds.factors("test")
    changed = (swapped(default_birds, factors, size).variants != factors.variants).sum(axis=1)
    assert changed.max() == size and changed.mean() > 0.7 * size


def test_a_layout_seed_moves_cues_to_other_places(default_birds: Codebirds) -> None:
    moved = Codebirds(replace(default_birds.settings, layout_seed=1))
    assert default_birds.places == (0, 1, 2, 3, 4)
    assert sorted(moved.places) == [0, 1, 2, 3, 4] and moved.places != default_birds.places
    factors = default_birds.factors("test", np.arange(4))
    assert not np.array_equal(moved.images(factors), default_birds.images(factors))


def test_the_distractor_follows_the_class_when_told_to(default_birds: Codebirds) -> None:
    factors = default_birds.factors("test", np.arange(4))
    with_object = Codebirds(replace(default_birds.settings, world="own", distractor=True, distractor_correlation=1.0))
    changed = (with_object.images(factors) != default_birds.images(factors)).any(axis=1).mean(axis=(1, 2))
    assert (changed > 0.005).all() and (changed < 0.1).all()


def test_background_is_the_same_picture_without_the_bird(default_birds: Codebirds) -> None:
    factors = default_birds.factors("test", np.arange(8))
    image, background = default_birds.images(factors), default_birds.backgrounds(factors)
    same = (image == background).all(axis=1).mean(axis=(1, 2))
    assert (same > 0.4).all() and (same < 0.95).all()


@pytest.mark.parametrize("size", (32, 48, 96))
def test_any_image_size_can_be_drawn(default_birds: Codebirds, size: int) -> None:
    birds = Codebirds(replace(default_birds.settings, image_size=size))
    assert birds.images(birds.factors("test", np.arange(3))).shape == (3, 3, size, size)


def test_draws_have_names_without_gaps(default_birds: Codebirds) -> None:
    factors = default_birds.factors("test", np.arange(2))
    assert np.array_equal(np.concatenate([factors.draw(name) for name in DRAWS], axis=1), factors.draws)
    assert factors.draws.shape == (2, NUM_DRAWS) and (factors.draws >= 0).all() and (factors.draws < 1).all()
