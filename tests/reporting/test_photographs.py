"""Tables of the rows on photographs and their shifts."""

from pathlib import Path

import pandas as pd
import pytest

from everycause.errors import UserError
from stages import photographs
from tests.reporting.stored import ROWS, VIEWS, store_evaluations


def test_the_accuracies_of_every_row_and_split_stand_in_a_table_and_on_a_page(tmp_path: Path) -> None:
    store_evaluations(tmp_path)
    photographs.main(artifacts=tmp_path / "nowhere", out=tmp_path / "out", pacs=tmp_path / "evaluation")
    table = pd.read_csv(tmp_path / "out" / "pacs.csv")
    assert list(table.columns) == ["row", "seed", "split", "accuracy"] and not table.duplicated(["row", "split"]).any()
    assert set(table.row) == set(ROWS) and set(table.split) == {view.split("/")[0] for view in VIEWS}
    right = {row: 0.0 for row in ROWS} | {"base": 5 / 12, "continued": 6 / 12, "masks": 8 / 12}
    assert all(
        value == pytest.approx(right[row], abs=1e-5) for row, value in zip(table.row, table.accuracy, strict=True)
    )
    page = (tmp_path / "out" / "pacs.md").read_text()
    assert "Training seeds: 1" in page and "test 12" in page and "+16.7" in page
    assert {file.name for file in (tmp_path / "out").iterdir()} == {"pacs.csv", "pacs.md"}


def test_evaluations_that_are_not_there_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no evaluation of base and continued: run dvc repro first"):
        photographs.main(artifacts=tmp_path, out=tmp_path / "out", pacs=tmp_path)
