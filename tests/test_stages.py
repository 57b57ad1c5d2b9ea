"""Every stage's main, on a toy of the embedded data and on real scans in folders: results, determinism, bad input."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import nbformat
import pytest
import torch
import yaml
from nbclient import NotebookClient

from everycause.artifacts import read_json
from everycause.explanation import masks as masks_module
from everycause.models import load
from stages import (
    accumulate_filters,
    detect_misclassifications,
    evaluate_ood,
    generate_masks,
    measure_faithfulness,
    readme,
    report,
    retrain,
    retrain_rounds,
    train_base,
)
from tests.conftest import ROOT
from tests.trees import digits_tree

ARTIFACTS = Path("artifacts")
BASE = ARTIFACTS / "models" / "base" / "seed-0"
FILTERS = ARTIFACTS / "filters" / "minimum_correct" / "seed-0"
MASKS = ARTIFACTS / "masks" / "counterfactual" / "seed-0"
DETECTION = ARTIFACTS / "detection" / "base" / "seed-0"
ROUNDS = ARTIFACTS / "models" / "masks_rounds" / "seed-0"


def run_pipeline(folder: Path, raw: dict) -> Path:
    """All stages, one after the other, as dvc.yaml calls them."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "params.yaml").write_text(yaml.safe_dump(raw))
    before = Path.cwd()
    os.chdir(folder)
    try:
        train_base.main(seed=0, out=BASE)
        accumulate_filters.main(seed=0, base=BASE, out=FILTERS)
        generate_masks.main(seed=0, base=BASE, out=MASKS)
        for row in raw["rows"]:
            retrain.main(
                row=row, seed=0, base=BASE, filters=FILTERS, masks=MASKS, out=ARTIFACTS / "models" / row / "seed-0"
            )
        retrain_rounds.main(seed=0, base=BASE, masks=MASKS, out=ROUNDS)
        measure_faithfulness.main(
            seed=0, models=ARTIFACTS / "models", filters=FILTERS, out=ARTIFACTS / "faithfulness" / "all" / "seed-0"
        )
        for row in raw["evaluated"]:
            evaluate_ood.main(
                row=row,
                seed=0,
                model=str(ARTIFACTS / "models" / row / "seed-0"),
                out=ARTIFACTS / "evaluation" / row / "seed-0",
            )
        detect_misclassifications.main(seed=0, base=BASE, filters=FILTERS, out=DETECTION)
        report.main(artifacts=ARTIFACTS, out=Path("reports/results"))
    finally:
        os.chdir(before)
    return folder


def smoke() -> dict:
    raw = yaml.safe_load((ROOT / "profiles" / "smoke.yaml").read_text())
    raw["tracking"]["system_metrics_seconds"] = 0.0
    raw["run"]["threads"] = 1
    return raw


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> None:
    """One MLflow store for all of them."""
    os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{tmp_path_factory.mktemp('mlflow') / 'mlflow.db'}"
    yield
    del os.environ["MLFLOW_TRACKING_URI"]


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory, store: None) -> Path:
    return run_pipeline(tmp_path_factory.mktemp("codebirds"), smoke())


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory, store: None) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    digits_tree(folder / "digits", classes=4, per_class=40)
    raw = smoke()
    raw["data"] |= {"source": "folder", "root": "digits", "folder": {"image_size": 32}}
    raw["training"] |= {"epochs": 12, "batch_size": 16}
    raw["masks"] |= {"images": 40}
    return run_pipeline(folder, raw)


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for part in ("artifacts", "reports")
        for path in sorted((folder / part).rglob("*"))
        if path.is_file()
    }


def test_every_artifact_of_a_second_run_has_the_same_bytes(toy: Path, tmp_path: Path) -> None:
    again = files(run_pipeline(tmp_path / "again", smoke()))
    first = files(toy)
    assert list(first) == list(again) and len(first) > 20
    assert [name for name in first if first[name] != again[name]] == []


def test_another_seed_of_the_data_gives_other_bytes(toy: Path, tmp_path: Path) -> None:
    raw = smoke()
    raw["data"]["codebirds"]["seed"] = 1
    raw["rows"], raw["evaluated"] = ["continued"], ["base"]
    other = files(run_pipeline(tmp_path / "other", raw))
    assert (
        other["artifacts/models/base/seed-0/model.safetensors"]
        != files(toy)["artifacts/models/base/seed-0/model.safetensors"]
    )


def test_the_report_has_every_row_and_every_figure(toy: Path) -> None:
    text = (toy / "reports" / "results" / "results.md").read_text()
    for row in ("base", "continued", "joint"):
        assert f"| `{row}` |" in text
    for said in (
        "Filters are units of the pooled vector of `layer4` of test_resnet",
        "| `exact_necessary` |",
        "| test | ",
        "`max_softmax`",
        "part in common",
        "runner-up reached",
    ):
        assert said in text, said
    figures = {line.split("](")[1].rstrip(")") for line in text.splitlines() if line.startswith("![")}
    assert figures == {
        "corruptions.png", "shift_scatter.png", "differences.png", "completeness.png", "reliance.png", "scene_gap.png", "accuracies.png", "rounds.png", "faithfulness.png", "filter_terms.png", "filter_heat_map.png",
        "detection.png", "gallery.png", "contact_sheet.png",
    }  # fmt: skip
    for name in figures:
        assert (toy / "reports" / "results" / name).stat().st_size > 5000
    measures = read_json(toy / "reports" / "results" / "metrics.json", "report")
    assert (
        measures["joint"]["accuracy/test"]
        == read_json(toy / "artifacts" / "evaluation" / "joint" / "seed-0" / "metrics.json", "")["accuracy/test"]
    )
    assert f"{100 * measures['joint']['completeness']:.1f}" in text


def test_photos_in_folders_go_through_every_stage(photos: Path) -> None:
    measures = read_json(photos / "reports" / "results" / "metrics.json", "report")
    assert measures["base"]["accuracy/test"] > 0.6
    assert {"accuracy/inverted", "accuracy/corruptions"} <= set(measures["base"]) and "completeness" not in measures[
        "base"
    ]
    text = (photos / "reports" / "results" / "results.md").read_text()
    assert "inverted" in text and "completeness" not in text
    assert load(photos / BASE).class_names == tuple(f"digit-{i}" for i in range(4))


def test_histories_hold_an_epoch_a_line_and_no_times(toy: Path) -> None:
    lines = (toy / "artifacts" / "models" / "joint" / "seed-0" / "history.jsonl").read_text().splitlines()
    assert len(lines) == smoke()["retraining"]["epochs"]
    assert '"train/augment"' in lines[0] and '"train/mc"' in lines[0] and "time" not in lines[0]


@pytest.mark.parametrize("stage", ("generate_masks", "retrain_rounds"))
def test_a_killed_stage_goes_on_and_ends_in_the_same_bytes(
    toy: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    monkeypatch.chdir(toy)
    raw = smoke()
    raw["masks"]["shard"] = 16
    (toy / "params.yaml").write_text(yaml.safe_dump(raw))

    def run_into(out: str) -> Path:
        if stage == "generate_masks":
            generate_masks.main(seed=0, base=BASE, out=Path(out))
        else:
            retrain_rounds.main(seed=0, base=BASE, masks=MASKS, out=Path(out))
        return Path(out)

    whole = run_into(f"{stage}-whole")
    owner, name = {"generate_masks": (masks_module, "searched"), "retrain_rounds": (retrain_rounds, "keep")}[stage]
    real, calls = getattr(owner, name), []

    def killed(*arguments: object) -> object:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(owner, name, killed)
    with pytest.raises(KeyboardInterrupt):
        run_into(f"{stage}-killed")
    assert not Path(f"{stage}-killed").exists() and Path(f"{stage}-killed.partial").is_dir()
    monkeypatch.setattr(owner, name, real)
    resumed = run_into(f"{stage}-killed")
    assert {path.name: path.read_bytes() for path in resumed.iterdir()} == {
        path.name: path.read_bytes() for path in whole.iterdir()
    }
    assert not Path(f"{stage}-killed.partial").exists() and len(list(whole.iterdir())) > 3


def test_the_notebooks_run_on_what_the_stages_wrote(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVERYCAUSE_ROOT", str(toy))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    notebooks = sorted((ROOT / "notebooks").glob("*.ipynb"))
    assert notebooks
    for path in notebooks:
        NotebookClient(nbformat.read(path, as_version=4), timeout=300, kernel_name="python3").execute(
            cwd=str(ROOT / "notebooks")
        )


def test_the_readme_takes_the_table_between_its_markers(toy: Path, tmp_path: Path) -> None:
    copy = tmp_path / "README.md"
    shutil.copy(ROOT / "README.md", copy)
    readme.main(copy, toy / "reports" / "results" / "table.md")
    text = copy.read_text()
    assert (toy / "reports" / "results" / "table.md").read_text().strip() in text
    readme.main(copy, toy / "reports" / "results" / "table.md")
    assert copy.read_text() == text
    with pytest.raises(ValueError, match="lacks the markers"):
        readme.with_table("no markers", "")


def refused(folder: Path, raw: dict, *command: str) -> str:
    """The one sentence with which a stage, started as DVC starts it, refuses."""
    (folder / "params.yaml").write_text(yaml.safe_dump(raw))
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "MLFLOW_TRACKING_URI": f"sqlite:///{folder / 'mlflow.db'}"}
    done = subprocess.run(
        [sys.executable, "-m", *command], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode != 0
    assert "Traceback" not in done.stderr and done.stderr.count("error: ") == 1, done.stderr
    assert not list(folder.rglob("*.partial")) and not (folder / "out").exists()
    return done.stderr


def no_filters(raw: dict) -> None:
    raw["filters"]["confidence_threshold"] = 0.9999


def diverging(raw: dict) -> None:
    raw["retraining"]["optimizer"]["learning_rate"] = 1e30


def wrong_layer(raw: dict) -> None:
    raw["model"]["explained_layer"] = "layer7"


def wrong_model(raw: dict) -> None:
    raw["model"]["name"] = "resnet_fifty"


def no_cuda(raw: dict) -> None:
    raw["run"]["device"] = "cuda"


def unknown_key(raw: dict) -> None:
    raw["tuning"]["surprise"] = 1


def fine_grid(raw: dict) -> None:
    raw["masks"]["regions"] = 10
    raw["data"]["source"], raw["data"]["root"], raw["data"]["folder"]["image_size"] = "folder", "digits", 16


def no_folder(raw: dict) -> None:
    raw["data"]["source"], raw["data"]["root"] = "folder", "nowhere"


TRAIN = ("stages.train_base", "--seed", "0", "--out", "out")
ACCUMULATE = ("stages.accumulate_filters", "--seed", "0", "--base", str(BASE), "--out", "out")
GENERATE = ("stages.generate_masks", "--seed", "0", "--base", str(BASE), "--out", "out")
RETRAIN = (
    "stages.retrain",
    "--row",
    "joint",
    "--seed",
    "0",
    "--base",
    str(BASE),
    "--filters",
    str(FILTERS),
    "--masks",
    str(MASKS),
    "--out",
    "out",
)


@pytest.mark.parametrize(
    ("mistake", "command", "message"),
    [
        (unknown_key, TRAIN, "the key 'tuning.surprise' is unknown"),
        (wrong_model, TRAIN, "'resnet_fifty' is not a timm model"),
        (wrong_layer, TRAIN, "'layer7' does not exist in test_resnet"),
        (no_folder, TRAIN, "'nowhere', which is not a folder"),
        pytest.param(
            no_cuda,
            TRAIN,
            "sees no CUDA device",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU"),
        ),
        (no_filters, ACCUMULATE, "has no training image that is predicted correctly with p ≥ 0.9999"),
        (fine_grid, GENERATE, "a grid needs a square number, such as 9 or 16"),
        (diverging, RETRAIN, "row joint: the loss is"),
    ],
    ids=lambda value: value.__name__ if callable(value) else None,
)
def test_bad_input_is_one_sentence_and_leaves_nothing(
    toy: Path, tmp_path: Path, mistake: Callable[[dict], None], command: tuple[str, ...], message: str
) -> None:
    shutil.copytree(toy / "artifacts", tmp_path / "artifacts")
    if mistake is fine_grid:
        digits_tree(tmp_path / "digits", classes=4, per_class=4)
    raw = smoke()
    mistake(raw)
    assert message in refused(tmp_path, raw, *command)


def test_a_stage_without_its_upstream_names_what_to_run(tmp_path: Path) -> None:
    assert "run the stage train_base first" in refused(tmp_path, smoke(), *ACCUMULATE)


def test_masks_of_another_model_are_refused(toy: Path, tmp_path: Path) -> None:
    shutil.copytree(toy / "artifacts", tmp_path / "artifacts")
    shutil.copytree(tmp_path / "artifacts" / "models" / "continued" / "seed-0", tmp_path / BASE, dirs_exist_ok=True)
    assert "was made for another model" in refused(tmp_path, smoke(), *RETRAIN)


def test_a_stage_explains_itself() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "stages.retrain", "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "--row" in done.stdout and "Folder of its filter bank" in done.stdout
