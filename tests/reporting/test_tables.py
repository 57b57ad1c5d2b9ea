import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from everycause.artifacts import write_json
from everycause.evaluation.predictions import Predictions
from everycause.reporting import explanations, figures, tables
from everycause.reporting import figures as robustness
from everycause.reporting.page import MASKS, summary_table
from everycause.reporting.results import Results

FAITHFULNESS = {"base": {"counterfactual": {"flip_rate": 0.9, "regions_at_flip": 4.125}, "random": {"flip_rate": 0.1}}}
ROWS, SEEDS = ["base", "continued", "masks"], [0, 1]


def stored(right: int) -> Predictions:
    """Ten test images of two classes, the first `right` of them classified correctly."""
    labels = torch.arange(10) % 2
    prediction = torch.where(torch.arange(10) < right, labels, 1 - labels)
    logits = torch.nn.functional.one_hot(prediction, 2).float()
    return Predictions({"test": logits, "foggy": logits}, {"test": labels, "foggy": labels}, None)


@pytest.fixture
def results(tmp_path: Path) -> Results:
    for row, right in (("base", 5), ("continued", 6), ("masks", 8)):
        for seed in SEEDS:
            folder = tmp_path / row / f"seed-{seed}"
            folder.mkdir(parents=True)
            predictions = stored(right + seed)
            predictions.save(folder)
            accuracy = float(predictions.correct("test").double().mean())
            write_json(
                folder / "metrics.json",
                {"accuracy/test": accuracy, "accuracy/foggy": accuracy, "accuracy/corruptions/jpeg_compression/1": 0.5},
            )
    return Results.load(tmp_path, ROWS, SEEDS)


def test_a_cell_is_mean_and_sample_deviation_over_seeds_in_percent(results: Results) -> None:
    lines = tables.main_table(results).splitlines()
    assert lines[0] == "| row | test | foggy |" and len(lines) == 2 + len(ROWS)
    deviation = 100 * np.std([0.8, 0.9], ddof=1)
    assert lines[-1] == f"| `masks` | 85.0 ± {deviation:.1f} | 85.0 ± {deviation:.1f} |"


def test_differences_are_paired_with_the_control_and_name_no_other_row(results: Results) -> None:
    lines = tables.difference_table(results).splitlines()
    assert [line.split("|")[1].strip() for line in lines[2:]] == ["`masks`"]
    assert "+20.0 [" in lines[2]
    assert results.difference("continued", "test") is None and results.difference("base", "test") is None


def test_the_header_says_how_many_seeds_and_which_rule(results: Results, tmp_path: Path) -> None:
    assert next(iter(tables.header(results))).startswith("2 seeds; mean ± standard deviation")
    single = Results.load(tmp_path, ROWS, [0])
    assert "training noise is not measured" in next(iter(tables.header(single)))
    assert "±" not in tables.main_table(single)


def test_a_missing_result_names_the_stage(tmp_path: Path, results: Results) -> None:
    with pytest.raises(ValueError, match="joint/seed-0/metrics.json does not exist: run the stage evaluate_ood"):
        Results.load(tmp_path, [*ROWS, "joint"], SEEDS)


def test_figures_have_reproducible_bytes(results: Results, tmp_path: Path) -> None:
    for name in ("one.png", "two.png"):
        figures.save(figures.accuracies(results), tmp_path / name)
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()


def test_a_measure_that_does_not_exist_is_an_empty_cell() -> None:
    lines = explanations.faithfulness_table(FAITHFULNESS).splitlines()
    assert lines[0] == "| model | selector | flips | regions at the flip |"
    assert lines[2:] == ["| `base` | counterfactual | 0.9 | 4.12 |", "| `base` | random | 0.1 |  |"]


@pytest.mark.parametrize("parts", ([], ["hue", "texture"]))
def test_the_rounds_are_drawn_with_and_without_known_parts(tmp_path: Path, parts: list[str]) -> None:
    known = {"round/completeness": 0.5, "round/reliance/0": 0.7, "round/reliance/1": 0.3} if parts else {}
    searched = {"round/regions_at_flip": 4.0} | ({"round/flip_distance": 1.5} if parts else {})
    rounds = [{"round/round": 0.0} | known, {"round/round": 1.0} | known | searched, {"round/round": 2.0} | known]
    figure = explanations.rounds_figure(rounds, parts, 2 if parts else None)
    assert len(figure.axes) == (3 if parts else 1)
    figures.save(figure, tmp_path / "rounds.png")


def test_a_summary_shows_measures_that_there_are_and_no_others() -> None:
    text = summary_table({"searched": 1200.0, "flip_rate": 0.93, "unknown": 1.0}, MASKS)
    assert (
        "| images searched | 1200 |" in text
        and "| share whose prediction flips | 0.93 |" in text
        and "parts" not in text
        and "unknown" not in text
    )


def test_significance_is_left_out_with_fewer_than_six_seeds_and_adjusted_with_more(tmp_path: Path) -> None:
    for row, right in (("continued", 5), ("masks", 8)):
        for seed in range(6):
            folder = tmp_path / row / f"seed-{seed}"
            folder.mkdir(parents=True)
            stored(right).save(folder)
            write_json(folder / "metrics.json", {"accuracy/test": 0.5})
    many = Results.load(tmp_path, ["continued", "masks"], list(range(6)))
    assert (
        tables.significance_table(many).splitlines()[2] == "| `masks` | 0.062 | 0.062 |"
    )  # 2 / 64 twice, Holm over two splits
    assert tables.significance_table(Results.load(tmp_path, ["continued", "masks"], list(range(5)))) == ""


def test_differences_on_natural_sketches_draw_whole_classes(results: Results) -> None:
    interval = results.difference("masks", "foggy")
    assert interval is not None and interval.mean == pytest.approx(0.2)
    renamed = {
        key: Predictions(
            {"test": one.logits["test"], "sketch": one.logits["foggy"]},
            {"test": one.labels["test"], "sketch": one.labels["foggy"]},
            None,
        )
        for key, one in results.predictions.items()
    }
    classes = dataclasses.replace(results, predictions=renamed).difference("masks", "sketch")
    assert (
        classes is not None
        and classes.mean == interval.mean
        and (classes.low, classes.high) != (interval.low, interval.high)
    )


def test_shift_is_drawn_per_corruption_as_scatter_and_as_differences(tmp_path: Path) -> None:
    for row, right in (("base", 4), ("continued", 5), ("masks", 8)):
        folder = tmp_path / row / "seed-0"
        folder.mkdir(parents=True)
        stored(right).save(folder)
        corruptions = {
            f"accuracy/corruptions/{name}{level}": 0.5
            for name in ("fog", "snow", "pixelate")
            for level in ("", "/1", "/3")
        }
        write_json(folder / "metrics.json", {"accuracy/test": 0.5, "accuracy/corruptions": 0.5} | corruptions)
    results = Results.load(tmp_path, ["base", "continued", "masks"], [0])
    assert robustness.corruption_names(results) == ["snow", "fog", "pixelate"]
    for draw in (robustness.corruption_figure, robustness.scatter_figure, robustness.difference_figure):
        figures.save(draw(results), tmp_path / "figure.png")
        assert (tmp_path / "figure.png").stat().st_size > 5000
    assert robustness.difference_figure(Results.load(tmp_path, ["base", "continued"], [0])) is None
