"""Differences and correlations of planted results."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from everycause.evaluation.statistics import sign_flip_p
from everycause.worlds.analysis import (
    COLUMNS,
    NOISE_COLUMNS,
    correlation,
    differences,
    frame,
    surprises,
    table,
)
from everycause.worlds.cells import Cell, World
from everycause.worlds.measurement import IMAGE_MEASURES
from everycause.worlds.page import (
    map_figure,
    map_page,
    noise_figure,
    noise_page,
    readme_table,
    study_figure,
    study_page,
)

IMAGES = 40
GAINS = {"base": 0.0, "continued": 0.0, "masks_random": 0.1, "masks": 0.3}


class Planted:
    """Stands for a Laboratory whose rows gain by a known amount over noise that all rows share."""

    def scores(self, cell: Cell, row: str) -> dict[str, np.ndarray]:
        generator = np.random.default_rng([cell.seed, int(10 * cell.where.dominance)])
        noise = generator.normal(0, 0.05, IMAGES)
        own = np.random.default_rng([cell.seed, len(row)]).normal(0, 0.01, IMAGES)
        return {name: 0.5 + GAINS[row] * cell.where.dominance + noise + own for name in IMAGE_MEASURES}

    def measures(self, cell: Cell, row: str) -> dict[str, float]:
        means = {name: float(values.mean()) for name, values in self.scores(cell, row).items()}
        others = ("accuracy/test", "effective_causes", "erasures/1/worst", "reliance/0")
        views = ("accuracy/scene_shift/independent", "accuracy/scene_shift/scene_only")
        return means | dict.fromkeys((*others, *views), 0.5)


def planted(seeds: int) -> list[Cell]:
    return [Cell(World("premise", 1.0, 0.0), seed) for seed in range(seeds)] + [
        Cell(World("additive", 0.0, 0.9), seed) for seed in range(seeds)
    ]


ROWS = ["continued", "masks_random", "masks"]


def test_planted_gains_are_found_where_they_are_and_nowhere_else() -> None:
    found = differences(Planted(), planted(6), ROWS)
    for one in found:
        gain = (GAINS[one.row] - GAINS[one.reference]) * one.where.dominance
        assert one.interval.mean == pytest.approx(gain, abs=0.02)
        if gain:
            assert one.interval.low > 0
    pairs = {(one.row, one.reference) for one in found}
    assert pairs == {("masks", "continued"), ("masks_random", "continued"), ("masks", "masks_random")}


def test_p_values_are_those_of_sign_flips_adjusted_for_all_differences_of_a_world() -> None:
    found = [one for one in differences(Planted(), planted(6), ROWS) if one.where.world == "premise"]
    least = sign_flip_p(np.ones(6))
    assert least == pytest.approx(2 / 64)
    assert all(one.p is not None and one.p == pytest.approx(min(1, least * len(found))) for one in found)


def test_few_seeds_get_no_p_value() -> None:
    assert all(one.p is None for one in differences(Planted(), planted(5), ROWS))


def test_the_table_has_one_line_for_each_measure_and_its_named_columns() -> None:
    made = table(Planted(), planted(2), ROWS)
    assert list(made.columns) == NOISE_COLUMNS and not made.label_noise.any()
    assert COLUMNS == ["world", "dominance", "scene_correlation", "row", "seed", "measure", "value"]
    assert len(made) == 4 * 4 * len(Planted().measures(planted(1)[0], "base"))
    assert not made.duplicated(COLUMNS[:-1]).any()


def test_completeness_that_follows_robustness_has_rank_correlation_one() -> None:
    lines = []
    for seed in range(6):
        for row in range(4):
            value = seed / 10 + row / 100
            measured = {"completeness": value, "accuracy/corruptions": value**2, "accuracy/renditions": 0.5}
            measured["accuracy/sketch"] = 0.5
            lines += [("premise", 1.0, 0.0, f"row-{row}", seed, name, one) for name, one in measured.items()]
    frame = pd.DataFrame(lines, columns=pd.Index(COLUMNS))
    assert correlation(frame, "premise") == pytest.approx((1, 1, 1))
    frame.loc[frame.measure == "completeness", "value"] *= -1
    assert correlation(frame, "premise") == pytest.approx((-1, -1, -1))


def test_the_page_says_what_was_planted_and_the_figures_are_drawn(tmp_path: Path) -> None:
    made, found = table(Planted(), planted(6), ROWS), differences(Planted(), planted(6), ROWS)
    page = "\n".join(study_page(made, found, "a processor"))
    assert "6 training seeds in each world, on a processor" in page
    line = next(line for line in page.splitlines() if line.startswith("| `masks` ") and "`continued`" in line)
    assert "+30." in line or "+29." in line
    assert len(study_figure(made, found).axes) == 4  # completeness and gain in two worlds
    panels = map_figure(found).axes
    assert len(panels) == 2 * len(IMAGE_MEASURES)
    texts = {text.get_text(): text.get_fontweight() for text in panels[1].texts}
    assert texts == {"+30": "bold", "+0": "normal"} or texts["+30"] == "bold"


def test_the_page_of_a_map_counts_the_worlds_in_which_a_row_is_shown_to_gain() -> None:
    cells = [
        Cell(World("own", strength, scene), seed) for strength in (1.0, 0.5) for scene in (0.0, 0.9) for seed in (0, 1)
    ]
    page = "\n".join(map_page(differences(Planted(), cells, ROWS), 2, "a processor"))
    assert "4 worlds × 2 training seeds, on a processor" in page
    counts = next(line for line in page.splitlines() if line.startswith("| `masks` (continued)"))
    assert [cell.strip() for cell in counts.split("|")[2:-1]] == ["4 / 0"] * len(IMAGE_MEASURES)
    below = next(line for line in page.splitlines() if line.startswith("| dominance 1 "))
    assert below.count("**+10.") + below.count("**+9.") == 2, (
        "random regions come first, and gain 0.1 in planted results"
    )


def test_the_short_table_has_the_first_world_and_the_gain_in_every_world() -> None:
    cells = planted(6)
    lines = readme_table(table(Planted(), cells, ROWS), differences(Planted(), cells, ROWS)).splitlines()
    head = "| row | completeness | renditions | sketch | corruptions | gain in `premise` | gain in `additive` |"
    assert lines[0] == head and [line.split("`")[1] for line in lines[2:]] == ["base", *ROWS]
    masks = [cell.strip() for cell in lines[-1].split("|")]
    assert masks[2].startswith("80.") or masks[2].startswith("79.")
    assert masks[6].startswith(("**+30.", "**+29.")) and abs(float(masks[7].strip("*").split()[0])) < 2


def test_a_run_is_expected_where_one_more_seed_would_be() -> None:
    study = table(Planted(), planted(6), ROWS)
    like, means = planted(9)[8], {}
    for row in ROWS:
        means[row] = Planted().measures(like, row)
    assert surprises(study, "premise", means) == []
    means["masks"]["completeness"] -= 0.3
    (sentence,) = surprises(study, "premise", means)
    assert sentence.startswith("completeness of `masks` is 0.") and "expected 0." in sentence
    assert surprises(study, "premise", {"unknown": {"completeness": 0.0}}) == []


def test_a_study_of_noise_names_its_shares(tmp_path: Path) -> None:
    cells = [Cell(World("confounded", 1.0, 0.9, noise), seed) for seed in range(2) for noise in (0.0, 0.1)]
    measured, found = table(Planted(), cells, ROWS), differences(Planted(), cells, ROWS)
    assert list(measured.columns) == NOISE_COLUMNS and "label_noise" in frame(found)
    text = "\n".join(noise_page(measured, "a machine"))
    assert "# Label noise in the world `confounded`" in text and "| 10 % | `masks` |" in text
    noise_figure(measured).savefig(tmp_path / "noise.png")
