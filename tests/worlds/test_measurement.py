"""A tiny study, run, stopped, and run again."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from everycause.data.split import Split
from everycause.device import cpu_name
from everycause.errors import UserError
from everycause.params import validated
from everycause.worlds import measurement
from everycause.worlds.analysis import differences, table
from everycause.worlds.cells import Cell, World
from everycause.worlds.measurement import IMAGE_MEASURES, Laboratory, check_plan, with_noise

CELL = Cell(World("confounded", 1.0, 0.9), 0)
ROWS = ["continued", "masks_random"]


@pytest.fixture
def laboratory(raw: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Laboratory:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    raw["training"]["epochs"] = raw["retraining"]["epochs"] = 1
    raw["data"]["codebirds"] |= {"train": 64, "validation": 16, "test": 32}
    raw["masks"]["confidence"] = 0.0
    return Laboratory(tmp_path / "work", validated(raw, "params"), 1, torch.device("cpu"), None)


def test_a_cell_is_measured_once_and_its_scores_average_to_its_measures(
    laboratory: Laboratory, monkeypatch: pytest.MonkeyPatch
) -> None:
    laboratory.measure(CELL, ROWS[:1])
    assert laboratory.missing(CELL, ROWS) == ["masks_random"]
    trained: list[str] = []
    inner = Laboratory._measure_row
    monkeypatch.setattr(
        Laboratory,
        "_measure_row",
        lambda self, cell, row: (trained.append(row), inner(self, cell, row))[1],
    )
    laboratory.measure(CELL, ROWS)
    assert trained == ["masks_random"] and not laboratory.missing(CELL, ROWS)
    for row in ("base", *ROWS):
        measures, scores = laboratory.measures(CELL, row), laboratory.scores(CELL, row)
        assert set(scores) == set(IMAGE_MEASURES)
        assert {name: float(values.mean()) for name, values in scores.items()} == pytest.approx(
            {name: measures[name] for name in IMAGE_MEASURES}
        )
        assert all(len(values) == 32 for values in scores.values())
    assert (laboratory.work / "views" / "confounded").is_dir()
    laboratory.forget(CELL.where)
    assert not (laboratory.work / "views" / "confounded").exists()
    assert laboratory.machine(CELL, "masks_random") == cpu_name()
    assert set(table(laboratory, [CELL], ROWS).row) == {"base", *ROWS}
    assert len(differences(laboratory, [CELL], ROWS)) == len(IMAGE_MEASURES)


def test_rows_of_other_params_or_other_code_are_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_plan(tmp_path, {"masks": {"regions": 36}})
    check_plan(tmp_path, {"masks": {"regions": 36}})
    with pytest.raises(UserError, match="measured with masks.regions = 36, which is now 49: restore it, or remove"):
        check_plan(tmp_path, {"masks": {"regions": 49}})
    monkeypatch.setattr(measurement, "code_fingerprint", lambda *_: "other")
    with pytest.raises(UserError, match="measured with code = .* now 'other'"):
        check_plan(tmp_path, {"masks": {"regions": 36}})


def test_a_folder_is_not_claimed_by_params_that_were_refused(tmp_path: Path) -> None:
    check_plan(tmp_path, SimpleNamespace(a={"b": 1}).__dict__)
    with pytest.raises(UserError):
        check_plan(tmp_path, {"a": {"b": 2}})
    check_plan(tmp_path, {"a": {"b": 1}})


def test_label_noise_gives_that_share_of_the_images_another_class(train: Split) -> None:
    less, more = with_noise(train, 0.1), with_noise(train, 0.25)
    for share, noisy in ((0.1, less), (0.25, more)):
        assert int((noisy.labels != train.labels).sum()) == round(share * len(train))
        assert noisy.labels.min() >= 0 and noisy.labels.max() < train.num_classes
    assert bool(((more.labels != train.labels) | (less.labels == train.labels)).all())
    assert len({train.identity, less.identity, more.identity}) == 3
    assert with_noise(train, 0.0) is train and bool((with_noise(train, 1.0).labels != train.labels).all())
