"""Numbers, columns and cells of the tables."""

import dataclasses
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from everycause.evaluation.predictions import Predictions
from everycause.reporting import tables
from everycause.reporting.page import MASKS
from everycause.reporting.results import Results
from stages.report import headlines, splits
from tests.reporting.stored import FEW, ROWS, VIEWS, detection, predictions, store_evaluation, store_evaluations

SEEDS = [0, 1]


@pytest.fixture
def results(tmp_path: Path) -> Results:
    """Two seeds of three rows, on two views of ten images."""
    for row, right in zip(ROWS, (5, 6, 8), strict=True):
        for seed in SEEDS:
            one = predictions([number < right + seed for number in range(10)], ("test", "foggy"), classes=2)
            store_evaluation(tmp_path / row / f"seed-{seed}", one)
    return Results.load(tmp_path, list(ROWS), SEEDS)


def test_a_cell_is_mean_and_sample_deviation_over_seeds_in_percent(results: Results) -> None:
    lines = tables.main_table(results).splitlines()
    assert lines[0] == "| row | test | foggy |" and len(lines) == 2 + len(ROWS)
    deviation = 100 * np.std([0.8, 0.9], ddof=1)
    assert lines[-1] == f"| `masks` | 85.0 ± {deviation:.1f} | 85.0 ± {deviation:.1f} |"


def test_splits_of_photographs_stand_in_the_order_of_the_data_without_columns_of_causes(tmp_path: Path) -> None:
    store_evaluations(tmp_path)
    results = Results.load(tmp_path / "evaluation", list(ROWS), [0])
    expected = "| row | test | art_painting | cartoon | sketch | corruptions |"
    assert tables.main_table(results).splitlines()[0] == expected
    assert tables.difference_table(results).splitlines()[0] == expected.replace("art_painting", "art painting")
    meanings = tables.column_meanings(results)
    assert "*sketch*:" in meanings and "completeness" not in meanings and "every other column" in meanings


def test_experiments_are_compared_by_few_numbers_of_each_row(results: Results, tmp_path: Path) -> None:
    assert headlines(results)["masks"] == {"test": 0.85, "foggy": 0.85} and set(headlines(results)) == set(ROWS)
    frame = results.frame.assign(completeness=1 / 3, scene_gap=0.1)
    known = dataclasses.replace(results, frame=frame)
    assert headlines(known)["base"] == {"test": 0.55, "completeness": 0.3333}


def test_plots_have_a_line_for_each_row_and_split_corruptions_together(tmp_path: Path) -> None:
    store_evaluations(tmp_path)
    table = splits(Results.load(tmp_path / "evaluation", list(ROWS), [0]))
    assert list(table.columns) == ["split", "row", "accuracy"] and len(table) == len(ROWS) * 5
    assert table[table.row == "masks"].accuracy.tolist() == [0.6667] * 5
    assert list(table.split.unique()) == ["test", "art_painting", "cartoon", "sketch", "corruptions"]


def test_differences_are_paired_with_the_control_and_name_no_other_row(results: Results) -> None:
    lines = tables.difference_table(results).splitlines()
    assert [line.split("|")[1].strip() for line in lines[2:]] == ["`masks`"]
    assert "+20.0 [" in lines[2]
    assert results.difference("continued", "test") is None and results.difference("base", "test") is None


def test_without_the_control_there_are_no_differences(results: Results) -> None:
    alone = dataclasses.replace(results, rows=("base", "masks"))
    assert tables.difference_table(alone) == "" and tables.winners_table(alone, ["a", "b"]) == ""


def test_the_header_says_how_many_seeds(results: Results, tmp_path: Path) -> None:
    assert next(iter(tables.header(results))).startswith("2 seeds; mean ± standard deviation")
    single = Results.load(tmp_path, list(ROWS), [0])
    assert "training noise is not measured" in next(iter(tables.header(single)))
    assert "±" not in tables.main_table(single)


def test_a_missing_result_names_the_stage(tmp_path: Path, results: Results) -> None:
    with pytest.raises(ValueError, match="joint/seed-0/metrics.json does not exist: run the stage evaluate_ood"):
        Results.load(tmp_path, [*ROWS, "joint"], SEEDS)


def test_a_measure_that_does_not_exist_is_an_empty_cell() -> None:
    measured = {"base": {"counterfactual": {"flip_rate": 0.9, "regions_at_flip": 4.125}, "random": {"flip_rate": 0.1}}}
    lines = tables.faithfulness_table(measured).splitlines()
    assert lines[0] == "| model | selector | share that flips | regions at the flip |"
    assert lines[2:] == ["| `base` | counterfactual | 0.9 | 4.12 |", "| `base` | random | 0.1 |  |"]


def test_a_summary_shows_measures_that_exist_and_no_others() -> None:
    text = tables.summary_table({"searched": 1200.0, "flip_rate": 0.93, "unknown": 1.0}, MASKS)
    assert "| images searched | 1200 |" in text and "| share whose prediction flips | 0.93 |" in text
    assert len(text.splitlines()) == 4


def test_significance_is_left_out_with_fewer_than_six_seeds_and_adjusted_with_more(tmp_path: Path) -> None:
    for row, right in (("continued", 5), ("masks", 8)):
        for seed in range(6):
            one = predictions([number < right for number in range(10)], ("test", "foggy"), classes=2)
            store_evaluation(tmp_path / row / f"seed-{seed}", one)
    many = Results.load(tmp_path, ["continued", "masks"], list(range(6)))
    # 2 / 64 twice, Holm over two splits
    assert tables.significance_table(many).splitlines()[2] == "| `masks` | 0.062 | 0.062 |"
    assert tables.significance_table(Results.load(tmp_path, ["continued", "masks"], list(range(5)))) == ""


def test_differences_on_natural_sketches_draw_whole_classes(results: Results) -> None:
    interval = results.difference("masks", "foggy")
    assert interval is not None and interval.mean == pytest.approx(0.2)

    def renamed(one: Predictions) -> Predictions:
        return dataclasses.replace(one, views={"test": one.views["test"], "sketch": one.views["foggy"]})

    sketches = dataclasses.replace(results, predictions={key: renamed(one) for key, one in results.predictions.items()})
    clustered = sketches.difference("masks", "sketch")
    assert clustered is not None and clustered.mean == interval.mean
    assert (clustered.low, clustered.high) != (interval.low, interval.high)


def history(mc: list[float]) -> list[dict[str, float]]:
    return [{"step": n, "train/mc": value, "train/nonmc": 1.0, "train/active": 40.0} for n, value in enumerate(mc, 1)]


def test_terms_that_do_not_move_show_in_the_table() -> None:
    histories = {
        "continued": history([0.4913, 0.4912]),
        "filters": history([0.4913, 0.6]),
        "plain": [{"step": 1, "train/loss": 1.0}],
        "lost": [],
    }
    lines = tables.terms_table(histories).splitlines()
    assert len(lines) == 4 and "0.4913 → 0.4912" in lines[2] and "0.4913 → 0.6" in lines[3]
    assert tables.terms_table({"lost": []}) == ""


def test_winners_and_losers_are_named_class_by_class() -> None:
    stored = {
        ("base", 0): [True] * 6,
        ("continued", 0): [True, True, False, True, True, False],
        ("filters", 0): [True, False, True, True, True, True],
    }
    frame = pd.DataFrame([{"row": row, "seed": 0, "accuracy/test": 0.5} for row, _ in stored])
    made = {key: predictions(right, classes=3) for key, right in stored.items()}
    results = Results(frame, made, ("base", "continued", "filters"), (0,))
    assert results.recalls("continued", "test").tolist() == [1.0, 1.0, 0.0]
    lines = tables.winners_table(results, ["a", "word-b", "c"]).splitlines()
    assert lines[2:] == ["| `filters` | test | 1 | c +100.0 | 1 | b -50.0 |"]


def test_detection_tables_leave_out_what_cannot_be_measured() -> None:
    report = tables.in_order(detection(), list(VIEWS))
    assert list(report) == ["test", "art_painting", "corruptions"]
    table = tables.detection_table(report)
    assert table.index("| test |") < table.index("| art_painting |") < table.index("| corruptions |")
    assert table.index("`filters`") < table.index("`entropy`")
    assert "| test | 1 / 8 | `gate` | 3 | 50.0 | 25.0 | 33.3 | 75.0 | 50.0 | 10.0 |" in table
    assert "| art_painting | 0 / 8 | `gate` | 3 | 50.0 | 25.0 | 33.3 |  |  |  |" in table and "auroc" not in FEW
    assert "| art_painting | 3 | 50.0 | 60.0 (+2 −1) |" in tables.relabelling_table(report)


def test_three_hundred_classes_leave_the_worst_and_the_best_in_the_table() -> None:
    def row(number: int) -> dict:
        return {"class": f"class-{number}", "predicted": 400, "errors": number, "flagged": 1, "found": 0}

    assert len(tables.classes_table({"test": {"by_class": [row(number) for number in range(40)]}}).splitlines()) == 42
    lines = tables.classes_table({"test": {"by_class": [row(number) for number in range(300)]}}).splitlines()[2:]
    assert len(lines) == 41 and lines[20].startswith("| … |")
    assert lines[0].startswith("| class-299 |") and lines[-1].startswith("| class-0 |")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("$5 and $6", r"\$5 and \$6"),
        ("a|b", r"a\|b"),
        ("art_painting", "art_painting"),
        ("_private_", r"\_private\_"),
        ("100%", "100%"),
        ("2*3 <b>", r"2\*3 \<b>"),
        ("鳥", "鳥"),
    ],
)
def test_names_from_the_data_mean_nothing_in_markdown(name: str, expected: str) -> None:
    assert tables.plain(name) == expected
    report = {"test": {"by_class": [{"class": name, "predicted": 1, "errors": 1, "flagged": 0, "found": 0}]}}
    assert tables.classes_table(report).splitlines()[2] == f"| {expected} | 1 | 1 | 0 | 0 |"
