"""The report as a whole, from what the stages stored."""

import shutil
import warnings
from pathlib import Path

import pytest

from everycause.artifacts import write_json
from everycause.reporting import figures
from everycause.reporting.page import CAPTIONS, document, drawn, texts
from everycause.reporting.results import Findings, Results
from tests.reporting.stored import CLASSES, ROWS, store_everything

OPTIONAL = {
    "Masks of the base": "masks",
    "Sets that flip a prediction": "faithfulness",
    "Filters of the base": "filters",
    "Filter terms": "models",
    "Misclassifications of the base": "detection",
}
"""Heading of the report → folder of artifacts that it comes from."""


@pytest.fixture
def artifacts(tmp_path: Path) -> Path:
    store_everything(tmp_path / "artifacts")
    return tmp_path / "artifacts"


def report(artifacts: Path) -> tuple[Results, Findings, str]:
    results = Results.load(artifacts / "evaluation", list(ROWS), [0])
    findings = Findings.load(artifacts, 0, (*results.rows, "masks_rounds", "object_exchange"))
    return results, findings, document(results, findings, list(drawn(results, findings)))


def test_a_full_report_has_every_section_and_every_figure_that_photographs_allow(artifacts: Path) -> None:
    results, findings, text = report(artifacts)
    for heading in OPTIONAL:
        assert f"## {heading}" in text, heading
    causal = {"completeness.png", "reliance.png", "scene_gap.png"}
    assert [name for name in CAPTIONS if f"]({name})" in text] == [name for name in CAPTIONS if name not in causal]
    assert "| `continued` | what continued adds |" in text and "| `base` | the starting point |" in text
    assert "| share of images whose first region touches a part | 0.5 |" in text
    assert set(findings.faithfulness) == {"base", "masks"} and findings.gallery is not None
    assert set(CLASSES) <= set(texts(results, findings))


@pytest.mark.parametrize("heading", OPTIONAL)
def test_sections_without_artifacts_are_left_out(artifacts: Path, heading: str) -> None:
    shutil.rmtree(artifacts / OPTIONAL[heading])
    _, _, text = report(artifacts)
    assert heading not in text
    assert all(f"## {other}" in text for other in OPTIONAL if other != heading)


def test_stages_that_were_not_asked_for_are_left_out(artifacts: Path) -> None:
    for kind in ("masks", "faithfulness", "filters", "detection", "models"):
        for folder in (artifacts / kind).glob("*/seed-0"):
            shutil.rmtree(folder)
            folder.mkdir()
            write_json(folder / "summary.json", {"asked": False})
    _, findings, text = report(artifacts)
    assert findings.filters is None and findings.detection is None and findings.masks is None
    assert not any(heading in text for heading in OPTIONAL) and "| `masks` | masks |" in text
    shown = {"accuracies.png", "shift_scatter.png", "differences.png", "corruptions.png", "contact_sheet.png"}
    assert {name for name in CAPTIONS if f"]({name})" in text} == shown


def test_names_that_look_like_formulas_do_not_stop_the_figures(artifacts: Path, tmp_path: Path) -> None:
    results, findings, text = report(artifacts)
    with figures.readable(texts(results, findings)), warnings.catch_warnings():
        warnings.simplefilter("error")
        for name, figure in drawn(results, findings).items():
            figures.save(figure, tmp_path / name)
    assert r"c\|d +" in text


def test_a_damaged_history_is_one_sentence_that_names_the_file(artifacts: Path) -> None:
    history = artifacts / "models" / "masks" / "seed-0" / "history.jsonl"
    history.write_text('{"step": 1}\n{"st')
    with pytest.raises(ValueError, match="masks/seed-0/history.jsonl is damaged .*run the stage retrain again"):
        report(artifacts)
