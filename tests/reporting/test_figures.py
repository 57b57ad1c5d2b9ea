"""Figures, by what their axes hold."""

import logging
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

from everycause.reporting import charts, figures, panels, pictures
from everycause.reporting.results import Pictures, Results
from everycause.reporting.tables import DETECTORS, in_order
from tests.reporting.stored import ROWS, VIEWS, detection, predictions, store_evaluation, store_evaluations
from tests.reporting.test_tables import history

NO_FONT = "\U00012000"
"""A cuneiform sign, which no font of an ordinary machine has."""


@pytest.fixture
def results(tmp_path: Path) -> Results:
    store_evaluations(tmp_path)
    return Results.load(tmp_path / "evaluation", list(ROWS), [0])


def side(axis: plt.Axes) -> list[str]:
    """The names down the side."""
    return [label.get_text() for label in axis.get_yticklabels()]


def printed(axis: plt.Axes) -> list[str]:
    """The values beside the marks."""
    return [text.get_text() for text in axis.texts]


def titles(figure: plt.Figure) -> list[str]:
    return [title for axis in figure.axes if (title := axis.get_title(loc="left"))]


def test_figures_have_reproducible_bytes(results: Results, tmp_path: Path) -> None:
    for name in ("one.png", "two.png"):
        figures.save(charts.accuracies(results), tmp_path / name)
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()


def test_accuracies_have_a_panel_per_split_in_the_order_of_the_data_and_a_line_per_row(results: Results) -> None:
    figure = charts.accuracies(results)
    assert titles(figure) == ["test", "art painting", "cartoon", "sketch", "corruptions"]
    first = figure.axes[0]
    assert side(first) == list(ROWS) and printed(first) == ["42", "50", "67"]  # 5, 6 and 8 of 12
    interval = results.interval("masks", "test")
    assert interval.mean == pytest.approx(8 / 12) and interval.low < 8 / 12 < interval.high


def test_every_name_and_number_of_a_chart_is_legible_on_a_printed_page(results: Results) -> None:
    for figure in (charts.accuracies(results), charts.corruption_figure(results), charts.difference_figure(results)):
        assert figure.get_size_inches()[0] <= panels.WIDTH
        texts = [text for text in figure.findobj(plt.Text) if text.get_text()]
        assert texts and min(text.get_fontsize() for text in texts) >= 8


def test_a_tiny_difference_does_not_look_large() -> None:
    narrow, wide = ({"a": panels.Mark(0.5), "b": panels.Mark(0.5 + gap)} for gap in (0.001, 0.4))
    figure = panels.row_panels([panels.Panel("narrow", narrow), panels.Panel("wide", wide)], figures.color)
    low, high = figure.axes[0].get_xlim()
    assert high - low >= 5 and (low + high) / 2 == pytest.approx(50.05)
    assert figure.axes[1].get_xlim()[1] - figure.axes[1].get_xlim()[0] > 40


def test_of_three_hundred_names_the_extremes_are_shown() -> None:
    marks = {f"name {number}": panels.Mark(number / 300) for number in range(300)}
    shown = panels.shown_names([panels.Panel("one", marks)])
    assert len(shown) == panels.MOST and shown[0] == "name 0" and shown[-1] == "name 299"
    assert "name 19" in shown and "name 20" not in shown and "name 280" in shown and "name 279" not in shown


def test_lines_without_a_value_stay_empty() -> None:
    marks = {"a": panels.Mark(float("nan")), "b": panels.Mark(0.25, 0.2, 0.3, other=0.1, dots=(0.2, 0.3))}
    (axis,) = panels.row_panels([panels.Panel("one", marks)], figures.color).axes
    assert side(axis) == ["a", "b"] and printed(axis) == ["25"]
    drawn = [
        sorted(line.get_xdata()) for line in axis.lines if list(line.get_ydata()).count(1) == len(line.get_ydata())
    ]
    assert [20.0, 30.0] in drawn and [10.0, 25.0] in drawn and [10.0] in drawn and [25.0] in drawn


def test_corruptions_have_a_column_each_and_a_line_per_row(results: Results) -> None:
    (axis,) = charts.corruption_figure(results).axes
    assert [label.get_text() for label in axis.get_xticklabels()] == ["fog", "snow"] and side(axis) == list(ROWS)
    assert printed(axis) == ["42", "42", "50", "50", "67", "67"]


def test_a_grid_leaves_unknown_fields_empty_and_its_numbers_readable() -> None:
    values = np.array([[0.0, np.nan], [50.0, 100.0]])
    (axis,) = panels.number_grid(values, ["a", "b"], ["c", "d"], "title", "cividis", (0.0, 100.0)).axes
    assert printed(axis) == ["0", "50", "100"]
    assert [text.get_color() for text in axis.texts] == ["white", "black", "black"]


def test_accuracy_under_shift_stands_beside_that_on_test_where_rows_differ_there(results: Results) -> None:
    figure = charts.scatter_figure(results)
    assert titles(figure) == ["art painting", "cartoon", "sketch", "corruptions"]
    alone = {key: replace(one, views={"test": one.views["test"]}) for key, one in results.predictions.items()}
    assert charts.scatter_figure(replace(results, predictions=alone)) is None


def test_rows_that_are_alike_on_test_have_no_such_chart(tmp_path: Path) -> None:
    for row in ROWS:
        store_evaluation(tmp_path / row / "seed-0", predictions([True] * 12, VIEWS))
    assert charts.scatter_figure(Results.load(tmp_path, list(ROWS), [0])) is None


def test_differences_are_drawn_for_rows_that_have_a_reference(results: Results, tmp_path: Path) -> None:
    figure = charts.difference_figure(results)
    assert side(figure.axes[0]) == ["masks"] and printed(figure.axes[0]) == [f"{100 * 2 / 12:+.1f}"]
    assert len(titles(figure)) == 5
    alone = Results.load(tmp_path / "evaluation", ["base", "continued"], [0])
    assert charts.difference_figure(alone) is None


def test_profiles_stand_beside_chance_and_optimum(results: Results) -> None:
    for erased in range(3):
        for kind, value in (("mean", 0.5), ("worst", 0.25), ("optimum", 1.0)):
            results.frame[f"erasures/{erased}/{kind}"] = value
    figure = charts.completeness_profiles(results, {"length": 3, "num_classes": 4})
    assert titles(figure) == ["1 part erased", "2 parts erased"]
    assert side(figure.axes[0]) == ["optimum", *ROWS] and printed(figure.axes[0]) == ["100", "50", "50", "50"]
    assert list(figure.axes[0].lines[0].get_xdata()) == [25.0, 25.0]


def test_reliance_on_the_scene_stands_beside_chance_and_small_values_look_small(results: Results) -> None:
    results.frame["scene_gap"], results.frame["accuracy/scene_shift/scene_only"] = 0.0, 0.06
    gap, alone = charts.scene_gap(results, 16).axes
    assert [*alone.lines[0].get_xdata()] == [100 / 16] * 2 and np.ptp(gap.get_xlim()) >= 5


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
    figure = charts.terms_figure(histories)
    assert len(figure.axes) == 3 and side(figure.axes[0]) == ["continued"] and printed(figure.axes[0]) == ["0.5"]
    assert charts.terms_figure({"plain": histories["plain"]}) is None


def test_selectors_without_a_measure_have_no_mark() -> None:
    found = {
        "base": {"counterfactual": {"flip_rate": 0.9}, "random": {}},
        "masks": {"counterfactual": {"flip_rate": 0.5}},
    }
    axis = charts.faithfulness_figure(found).axes[0]
    assert side(axis) == ["counterfactual", "random"] and printed(axis) == ["90"]


def test_detectors_are_drawn_on_splits_with_errors_alone() -> None:
    report = in_order(detection(), list(VIEWS))
    figure = charts.detection_figure(report)
    assert titles(figure) == ["test"] and side(figure.axes[0]) == list(DETECTORS)
    assert list(figure.axes[0].lines[0].get_xdata()) == [0.5, 0.5]
    assert charts.detection_figure({"art_painting": report["art_painting"]}) is None


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
    many = {name: value.expand(16, *value.shape[1:]) for name, value in tensors.items()}
    assert len(pictures.gallery(Pictures(many, {"titles": ["a"] * 16})).axes) == 3 * pictures.COLUMNS


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
