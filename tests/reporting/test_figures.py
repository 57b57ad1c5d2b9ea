"""Figures, by what their axes hold."""

import logging
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

from everycause.reporting import figures, pictures
from everycause.reporting.results import Pictures, Results
from everycause.reporting.tables import DETECTORS, in_order
from tests.reporting.stored import ROWS, VIEWS, detection, store_evaluations
from tests.reporting.test_tables import history

NO_FONT = "\U00012000"
"""A cuneiform sign, which no font of an ordinary machine has."""


@pytest.fixture
def results(tmp_path: Path) -> Results:
    store_evaluations(tmp_path)
    return Results.load(tmp_path / "evaluation", list(ROWS), [0])


def tick_labels(axis: plt.Axes) -> list[str]:
    return [label.get_text() for label in axis.get_xticklabels()]


def test_figures_have_reproducible_bytes(results: Results, tmp_path: Path) -> None:
    for name in ("one.png", "two.png"):
        figures.save(figures.accuracies(results), tmp_path / name)
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()


def test_accuracies_have_a_bar_per_row_and_split_in_the_order_of_the_data(results: Results) -> None:
    (axis,) = figures.accuracies(results).axes
    assert tick_labels(axis) == ["test", "art painting", "cartoon", "sketch", "corruptions"]
    assert [bars.get_label() for bars in axis.containers] == list(ROWS)
    heights = [bar.get_height() for bar in axis.containers[2]]
    assert heights == pytest.approx([8 / 12] * 5)


def test_corruptions_have_a_panel_each_and_a_line_per_row(results: Results) -> None:
    results.frame["accuracy/corruptions/snow/3"] = 0.25
    figure = figures.corruption_figure(results)
    assert [axis.get_title() for axis in figure.axes] == ["fog", "snow"]
    assert all(len(axis.lines) == len(ROWS) for axis in figure.axes)
    assert figure.axes[1].lines[0].get_ydata().tolist() == pytest.approx([5 / 12, 0.25])


def test_the_scatter_has_a_panel_per_shift_and_none_without_shifts(results: Results) -> None:
    figure = figures.scatter_figure(results)
    assert [axis.get_title() for axis in figure.axes] == ["art painting", "cartoon", "sketch", "corruptions"]
    assert all(len(axis.collections) == len(ROWS) for axis in figure.axes)
    alone = {key: replace(one, views={"test": one.views["test"]}) for key, one in results.predictions.items()}
    assert figures.scatter_figure(replace(results, predictions=alone)) is None


def test_differences_are_drawn_for_rows_that_have_a_reference(results: Results, tmp_path: Path) -> None:
    figure = figures.difference_figure(results)
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["masks"]
    point = figure.axes[0].lines[2].get_xdata()
    assert point[0] == pytest.approx(100 * 2 / 12) and len(figure.axes) == 5
    alone = Results.load(tmp_path / "evaluation", ["base", "continued"], [0])
    assert figures.difference_figure(alone) is None


def test_profiles_stand_beside_chance_and_optimum(results: Results) -> None:
    for erased in range(3):
        for kind, value in (("mean", 0.5), ("worst", 0.25), ("optimum", 1.0)):
            results.frame[f"erasures/{erased}/{kind}"] = value
    left, right = figures.completeness_profiles(results, {"length": 3, "num_classes": 4}).axes
    assert [line.get_label() for line in left.lines] == ["optimum (code)", "chance", *ROWS]
    assert left.lines[2].get_ydata().tolist() == [0.5] * 3 and right.lines[2].get_ydata().tolist() == [0.25] * 3
    assert left.lines[1].get_ydata() == [0.25, 0.25]


def test_reliance_on_the_scene_stands_beside_chance_and_small_values_look_small(results: Results) -> None:
    results.frame["scene_gap"], results.frame["accuracy/scene_shift/scene_only"] = 0.0, 0.06
    axis = figures.scene_gap(results, 16).axes[0]
    assert [*axis.lines[0].get_ydata()] == [1 / 16] * 2 and axis.get_ylim()[1] == 0.25
    results.frame["scene_gap"] = 0.6
    assert figures.scene_gap(results, 16).axes[0].get_ylim()[1] > 0.6


@pytest.mark.parametrize("parts", ([], ["hue", "texture"]))
def test_the_rounds_are_drawn_with_and_without_known_parts(parts: list[str]) -> None:
    known = {"round/completeness": 0.5, "round/reliance/0": 0.7, "round/reliance/1": 0.3} if parts else {}
    searched = {"round/regions_at_flip": 4.0} | ({"round/flip_distance": 1.5} if parts else {})
    rounds = [{"round/round": 0.0} | known, {"round/round": 1.0} | known | searched, {"round/round": 2.0} | known]
    axes = figures.rounds_figure(rounds, parts, 2 if parts else None).axes
    assert len(axes) == (3 if parts else 1)
    assert axes[-1].lines[0].get_xdata().tolist() == [1.0] and axes[-1].lines[0].get_ydata().tolist() == [4.0]
    if parts:
        assert [line.get_label() for line in axes[0].lines[:2]] == parts
        assert axes[1].lines[0].get_ydata().tolist() == [0.5] * 3


def test_terms_are_drawn_for_rows_that_compute_them() -> None:
    histories = {"continued": history([0.4, 0.5]), "plain": [{"step": 1, "train/loss": 1.0}], "lost": []}
    figure = figures.terms_figure(histories)
    assert len(figure.axes) == 3 and [line.get_label() for line in figure.axes[0].lines] == ["continued"]
    assert figure.axes[0].lines[0].get_ydata().tolist() == [0.4, 0.5]
    assert figures.terms_figure({"plain": histories["plain"]}) is None


def test_selectors_without_a_measure_have_no_bar() -> None:
    found = {
        "base": {"counterfactual": {"flip_rate": 0.9}, "random": {}},
        "masks": {"counterfactual": {"flip_rate": 0.5}},
    }
    axis = figures.faithfulness_figure(found).axes[0]
    heights = [[bar.get_height() for bar in bars] for bars in axis.containers]
    assert heights[0] == [0.9, 0.5] and np.isnan(heights[1]).all() and tick_labels(axis) == ["base", "masks"]


def test_detectors_are_drawn_on_splits_with_errors_alone() -> None:
    report = in_order(detection(), list(VIEWS))
    upper, lower = figures.detection_figure(report).axes
    assert tick_labels(lower) == ["test"] and [bars.get_label() for bars in upper.containers] == list(DETECTORS)
    assert list(lower.lines[0].get_ydata()) == [1 / 8, 1 / 8] and list(upper.lines[0].get_ydata()) == [0.5, 0.5]
    assert figures.detection_figure({"art_painting": report["art_painting"]}) is None


def filters(classes: int) -> tuple[Pictures, list[str]]:
    generator = torch.Generator().manual_seed(0)
    shared = torch.rand(classes, classes, generator=generator, dtype=torch.float64)
    tensors = {"shares": torch.rand(classes, 7, generator=generator), "overlap": shared}
    return Pictures(tensors, {"titles": []}), [f"class {number}" for number in range(classes)]


def test_a_heat_map_names_every_class_up_to_forty_and_of_more_the_extremes() -> None:
    few = pictures.heat_map(*filters(40)).axes[0]
    assert [label.get_text() for label in few.get_yticklabels()] == [f"class {number}" for number in range(40)]
    many, names = filters(300)
    order = many.tensors["overlap"].mean(dim=0).argsort().tolist()
    figure = pictures.heat_map(many, names)
    shown = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert shown == [names[number] for number in [*order[:20], *order[-20:]]]
    assert figure.axes[0].images[0].get_array().shape == (40, 7) and "of 300 classes" in figure.axes[0].get_title()
    inches = figure.axes[0].get_position().height * figure.get_figheight()
    assert inches / 40 > 7 / 72  # a line of the font of 7 points fits


def test_top_filters_stand_beside_their_image_under_one_title_per_class() -> None:
    images = torch.full((3, 3, 8, 8), 100, dtype=torch.uint8)
    titles = [["a" * 40, "its filters", "1: 50%"]] * 2 + [["word-b", "its filters", "2: 10%"]]
    found = pictures.filters_on_images(Pictures({"images": images, "maps": torch.rand(3, 2, 4, 4)}, {"titles": titles}))
    assert len(found.axes) == 9
    first = [found.axes[number].get_title() for number in (0, 3, 6)]
    assert first == ["a" * 23 + "…", "", "b"]
    assert len(found.axes[0].images) == 1 and len(found.axes[1].images) == 2


def test_the_gallery_tints_what_is_removed() -> None:
    images = torch.full((1, 3, 8, 8), 100, dtype=torch.uint8)
    removed = torch.zeros(1, 8, 8, dtype=torch.bool)
    removed[0, 0, 0] = True
    tensors = {"images": images, "removed": removed, "counterfactuals": images + 1}
    whole, tinted, after = pictures.gallery(Pictures(tensors, {"titles": ["a → b"]})).axes
    assert whole.get_title() == "a → b" and (after.images[0].get_array() == 101).all()
    shown = tinted.images[0].get_array()
    assert shown[0, 0].tolist() == [197, 40, 92] and (shown[1:] == 100).all()


@pytest.mark.parametrize("name", ["$igma $", "a_b^{c", r"\alpha $x$", "50%", "{$}"])
def test_names_are_no_formulas(name: str, tmp_path: Path) -> None:
    with figures.readable([name]):
        figure, axis = plt.subplots()
        axis.set_title(name)
        axis.set_yticks([0.5], [name])
        figures.save(figure, tmp_path / "name.png")
        assert not any(text.get_parse_math() for text in (axis.title, *axis.get_yticklabels()))
    assert (tmp_path / "name.png").is_file() and plt.rcParams["text.parse_math"]


def test_characters_without_a_font_are_said_once(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    with caplog.at_level(logging.WARNING), figures.readable(["plain", f"a{NO_FONT}", NO_FONT]):
        figure, axis = plt.subplots()
        axis.set_title(NO_FONT)
        figures.save(figure, tmp_path / "name.png")
    (said,) = caplog.records
    assert f"'{NO_FONT}'" in said.getMessage() and "install one that has" in said.getMessage()


def test_an_installed_font_is_taken_for_characters_that_the_default_lacks() -> None:
    default, nothing = figures.fonts_for(set("Rotkehlchen ü"))
    assert default == [figures.DEFAULT_FONT] and not nothing
    only_elsewhere = "\u20ec"  # an arrow that DejaVu Sans lacks; fonts that matplotlib brings along have it
    fonts, missing = figures.fonts_for({only_elsewhere, NO_FONT})
    assert fonts[0] == figures.DEFAULT_FONT and len(fonts) > 1 and missing == {NO_FONT}
