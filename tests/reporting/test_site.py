"""The page, as HTML; tests/test_page_in_browser.py opens it."""

import re
import shutil
from pathlib import Path

import matplotlib
import pandas as pd
import pytest
from PIL import Image

from everycause.artifacts import read_json
from everycause.errors import UserError
from everycause.reporting import answers, published
from everycause.reporting.examples import read_examples
from everycause.reporting.html import LARGE, embedded, html, sections
from everycause.reporting.site import page
from stages import page as page_stage
from stages import report
from tests.imports import ROOT
from tests.reporting.stored import ROWS, store_everything

COLUMNS = ["world", "scene_correlation", "row", "reference", "measure", "mean", "low", "high"]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, raw: dict) -> Path:
    """The report of a run, written by its stage from artifacts made up for it."""
    import yaml

    matplotlib.use("Agg")
    store_everything(tmp_path / "artifacts")
    params = raw | {"rows": list(ROWS[1:]), "evaluated": list(ROWS), "seeds": [0]}
    params["faithfulness"] = raw["faithfulness"] | {"rows": ["base", "masks"]}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    report.main(Path("artifacts"), Path("run"))
    return tmp_path / "run"


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the published reports."""
    folder = tmp_path_factory.mktemp("published") / "reports"
    shutil.copytree(ROOT / "reports", folder, ignore=shutil.ignore_patterns("run", "index.html"))
    return folder


def test_the_stage_report_writes_a_page_of_the_run_alone(run: Path) -> None:
    text = (run / "index.html").read_text()
    assert "<h1>" in text and "The answer" not in text and 'id="gallery"' in text
    assert not re.search(r'(src|href)="(?!data:|#|[\w./-]+")', text) and "http" not in re.sub(r"data:[^\"]+", "", text)
    examples = read_examples(run)
    assert [one["row"] for one in examples] == ["masks"] * 2 and set(examples[0]["files"]) == {
        "image", "parts", "removed", "counterfactual",
    }  # fmt: skip


def test_names_from_the_users_data_are_text_on_the_page(run: Path) -> None:
    text = (run / "index.html").read_text()
    assert "&lt;b&gt;" in text and "<b>" not in text


def test_the_question_shows_an_image_that_the_base_loses_and_the_retrained_model_keeps(run: Path) -> None:
    text = (run / "index.html").read_text()
    question = text[text.index('id="question"') : text.index('id="run"')]
    assert question.count("<img") == 4 and "10.0 %" in question and question.count("90.0 %") == 3


def test_every_picture_has_a_text_and_every_table_a_name_of_its_own(run: Path) -> None:
    text = (run / "index.html").read_text()
    assert all(re.findall(r'<img[^>]* alt="([^"]*)"', text))
    names = re.findall(r'aria-label="(Table [^"]+)"', text)
    assert len(names) == len(set(names)) > 3 and text.count("<table>") == len(names)


def test_another_artifact_makes_another_page(run: Path) -> None:
    before = (run / "index.html").read_text()
    detection = run.parent / "artifacts" / "detection" / "base" / "seed-0" / "detection.json"
    changed = detection.read_text().replace("0.25", "0.123456")
    detection.write_text(changed)
    report.main(Path("artifacts"), Path("run"))
    after = (run / "index.html").read_text()
    assert "12.3" not in before and "12.3" in after


def test_the_published_page_follows_the_files_of_the_reports(reports: Path) -> None:
    before = page(reports / "results", reports, reports)
    for part in ("answer", "advice", "photographs", "run", "counterfactuals", "sweeps", "costs", "paper", "deviations"):
        assert f'id="{part}"' in before, part
    assert len(before) < 8e6
    places = {
        "study/differences.csv": ("premise", "masks", "continued", "completeness"),
        "map/differences.csv": ("own", "masks", "continued", "completeness"),
    }
    for name, (world, row, reference, measure) in places.items():
        table = pd.read_csv(reports / name)
        chosen = (
            (table.world == world) & (table.row == row) & (table.reference == reference) & (table.measure == measure)
        )
        assert chosen.any(), name
        table.loc[chosen, ["mean", "low", "high"]] = [0.4321, 0.42, 0.44]
        table.to_csv(reports / name, index=False)
        after = page(reports / "results", reports, reports)
        assert after != before and ("+43.2 [+42.0, +44.0]" in after), name
        before = after


def test_a_missing_report_is_named_with_the_command_that_makes_it(reports: Path, tmp_path: Path) -> None:
    fewer = tmp_path / "reports"
    shutil.copytree(reports, fewer)
    (fewer / "map" / "differences.csv").unlink()
    with pytest.raises(UserError, match=r"map/differences.csv', which is missing: run `make map`"):
        page(fewer / "results", fewer, fewer)
    with pytest.raises(UserError, match=r"results.md does not exist: run `dvc repro`"):
        page(tmp_path, None, tmp_path)


def test_the_stage_writes_the_page_and_the_published_figures_whole(reports: Path, tmp_path: Path) -> None:
    out = tmp_path / "index.html"
    page_stage.main(reports, out)
    assert out.read_text().startswith("<!doctype html>") and not list(tmp_path.glob("*.partial"))
    assert (reports / "paper.md").read_text() == published.paper(reports)


def test_published_figures_stand_beside_ours_or_a_reason(reports: Path) -> None:
    for one in published.FIGURES:
        assert one.ours(reports) or one.caveat.startswith("not comparable"), one.what
        assert one.value and one.caveat
    table = pd.read_csv(reports / "photographs" / "cue_conflict.csv")
    chosen = (table.measure == "shape_bias") & (table.model == "tf_efficientnet_lite0") & (table["class"] == "all")
    ours = next(one for one in published.FIGURES if one.what.startswith("shape bias"))
    assert ours.ours(reports).startswith(f"{float(table[chosen].value.iloc[0]):.1%}")
    assert not ours.ours(reports / "nowhere")


def differences(
    row: str, reference: str, *intervals: tuple[float, float], scenes: tuple[float, ...] = ()
) -> list[tuple]:
    scenes = scenes or tuple(float(number) for number in range(len(intervals)))
    return [
        (f"world {scene}", scene, row, reference, "completeness", (low + high) / 2, low, high)
        for scene, (low, high) in zip(scenes, intervals, strict=True)
    ]


@pytest.mark.parametrize(
    ("intervals", "verdict"),
    [
        ([(0.1, 0.2), (0.01, 0.3)], "Yes"),
        ([(-0.2, -0.1), (-0.3, -0.2)], "No: it harms"),
        ([(0.1, 0.2), (-0.3, -0.2)], "It depends on the world"),
        ([(0.1, 0.2), (-0.3, 0.2)], "In some worlds"),
        ([(-0.1, 0.2), (-0.3, -0.2)], "No: it harms in some worlds"),
        ([(-0.1, 0.2), (-0.3, 0.2)], "No difference shown"),
    ],
)
def test_verdicts_follow_from_intervals(intervals: list[tuple[float, float]], verdict: str) -> None:
    found = pd.DataFrame(differences("masks", "continued", *intervals), columns=COLUMNS)
    assert answers.count(answers.compared(found, "masks", "continued")).verdict == verdict
    assert f"**{verdict}**" in answers.answer_table(found)


def test_advice_is_the_row_with_the_largest_gain_in_the_worst_world() -> None:
    scenes = (0.0, 0.9)
    lines = differences("masks", "continued", (0.10, 0.12), (-0.2, -0.18), scenes=scenes)
    lines += differences("object_exchange", "continued", (0.05, 0.07), (0.06, 0.08), scenes=scenes)
    table = answers.advice_table(pd.DataFrame(lines, columns=COLUMNS)).splitlines()[2:]
    assert [line.split("|")[2].strip() for line in table] == ["`masks`", "`object_exchange`", "`object_exchange`"]
    assert "-19 to +11" in table[2] and "+6 to +7" in table[2]


def test_the_price_of_a_row_names_measures_and_worlds() -> None:
    lines = differences("masks", "continued", (0.1, 0.2), (-0.3, -0.2))
    lines += [(*line[:4], "scene_gap", *line[5:]) for line in differences("masks", "continued", (0.1, 0.2), (0.3, 0.4))]
    found = pd.DataFrame(lines, columns=COLUMNS)
    expected = "`masks` is shown worse than training on in: completeness in 1 of 2 worlds; scene gap in 2 of 2 worlds."
    assert answers.price(found, "masks") == expected and answers.price(found[:1], "masks") == ""


def test_sections_are_cut_at_second_level_headings() -> None:
    assert sections("# T\n\nlead\n\n## A\n\na\n\n### B\n\nb\n\n## C\n") == {"": "lead", "A": "a\n\n### B\n\nb", "C": ""}


def test_markdown_becomes_html_that_stands_alone(tmp_path: Path) -> None:
    Image.new("RGB", (3, 2)).save(tmp_path / "a.png")
    table = "| row | +1 |\n|---|---|\n| `a_b` | 1.0 [-2.0, +3] |"
    links = "[on](../docs/a.md), [x](https://x.org), <script>"
    text = f"## One\n\n![what *it* shows](a.png)\n\n{table}\n\n{links}"
    found = html(text, tmp_path, tmp_path.parent, level=4)
    assert "<h4>One</h4>" in found and 'src="data:image/png;base64,' in found and 'width="3" height="2"' in found
    assert 'aria-label="Table: row, +1"' in found and '<td class="numbers">' in found and "<td><code>" in found
    assert 'href="docs/a.md"' in found and 'href="https://x.org"' in found and "&lt;script&gt;" in found
    with pytest.raises(UserError, match="b.png', which is missing"):
        html("![b](b.png)", tmp_path, tmp_path)


def test_large_pictures_become_smaller_and_small_ones_stay(tmp_path: Path) -> None:
    import numpy as np

    noise = np.random.default_rng(0).integers(0, 256, (400, 400, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "large.png")
    assert (tmp_path / "large.png").stat().st_size > LARGE
    source, size = embedded(tmp_path / "large.png")
    assert source.startswith("data:image/webp") and size == (400, 400) and len(source) < LARGE
    Image.new("RGB", (2, 2)).save(tmp_path / "small.png")
    assert embedded(tmp_path / "small.png")[0].startswith("data:image/png")


def test_the_examples_say_what_they_show(run: Path) -> None:
    for one in read_json(run / "gallery.json", "report", kind=list):
        for file in one["files"].values():
            assert Image.open(run / file).size == (8, 8)
        assert one["seen"]["base"]["counterfactuals"]["probability"] == 0.1
