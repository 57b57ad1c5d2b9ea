"""Every stage's main, on a toy of the embedded data and on real scans in folders: results, determinism, bad input."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import mlflow
import nbformat
import pytest
import timm
import torch
import yaml
from nbclient import NotebookClient
from PIL import Image

from everycause.artifacts import MARKER, read_json
from everycause.data.sources import DataParams, open_split
from everycause.errors import UserError
from everycause.explanation import masks as masks_module
from everycause.models import load
from everycause.training import rounds as rounds_module
from stages import (
    accumulate_filters,
    check_inputs,
    detect_misclassifications,
    evaluate_ood,
    generate_masks,
    measure_faithfulness,
    readme,
    report,
    retrain,
    train_base,
)
from tests.conftest import ROOT
from tests.trees import digits_tree

ARTIFACTS = Path("artifacts")
BASE = ARTIFACTS / "models" / "base" / "seed-0"
FILTERS = ARTIFACTS / "filters" / "minimum_correct" / "seed-0"
MASKS = ARTIFACTS / "masks" / "counterfactual" / "seed-0"
DETECTION = ARTIFACTS / "detection" / "base" / "seed-0"
INPUTS = ARTIFACTS / "inputs"


def run_pipeline(folder: Path, raw: dict) -> Path:
    """All stages, one after the other, as dvc.yaml calls them."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "params.yaml").write_text(yaml.safe_dump(raw))
    before = Path.cwd()
    os.chdir(folder)
    try:
        check_inputs.main(out=INPUTS)
        for seed in raw["seeds"]:
            run_seed(raw, seed)
        report.main(artifacts=ARTIFACTS, out=Path("reports/run"))
    finally:
        os.chdir(before)
    return folder


def run_seed(raw: dict, seed: int) -> None:
    """The stages of one training seed."""

    def place(kind: str, row: str) -> Path:
        return ARTIFACTS / kind / row / f"seed-{seed}"

    def inputs(stage: str) -> Path:
        return INPUTS / f"{stage}.json"

    base, filters, masks = (
        place("models", "base"),
        place("filters", "minimum_correct"),
        place("masks", "counterfactual"),
    )
    train_base.main(seed=seed, out=base)
    accumulate_filters.main(seed=seed, base=base, out=filters, inputs=inputs("accumulate_filters"))
    generate_masks.main(seed=seed, base=base, out=masks, inputs=inputs("generate_masks"))
    for row in raw["rows"]:
        retrain.main(row=row, seed=seed, base=base, filters=filters, masks=masks, out=place("models", row))
    for row in raw["faithfulness"]["rows"]:
        measure_faithfulness.main(
            row=row, seed=seed, model=place("models", row), filters=filters, masks=masks,
            out=place("faithfulness", row), inputs=inputs("measure_faithfulness"),
        )  # fmt: skip
    for row in raw["evaluated"]:
        evaluate_ood.main(row=row, seed=seed, model=str(place("models", row)), out=place("evaluation", row))
    detect_misclassifications.main(
        seed=seed,
        base=base,
        filters=filters,
        out=place("detection", "base"),
        inputs=inputs("detect_misclassifications"),
    )


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


NAMES = ("$1 and $2", "100%_$x_{", "_a|b*", "鳥")
"""Class names that mean something in formulas and in Markdown, or that ordinary fonts lack; in alphabetical order."""


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory, store: None) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    digits_tree(folder / "digits", classes=4, per_class=40)
    for split in (folder / "digits").iterdir():
        for label, name in enumerate(NAMES):
            (split / f"digit-{label}").rename(split / name)
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
    raw["faithfulness"] |= {"rows": ["base"], "selectors": []}
    other = files(run_pipeline(tmp_path / "other", raw))
    assert (
        other["artifacts/models/base/seed-0/model.safetensors"]
        != files(toy)["artifacts/models/base/seed-0/model.safetensors"]
    )


def test_the_report_has_every_row_and_every_figure(toy: Path) -> None:
    text = (toy / "reports" / "run" / "results.md").read_text()
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
        "corruptions.png", "shift_scatter.png", "differences.png", "completeness.png", "reliance.png",
        "scene_gap.png", "accuracies.png", "rounds.png", "faithfulness.png", "filter_terms.png",
        "filter_heat_map.png", "detection.png", "gallery.png", "contact_sheet.png",
    }  # fmt: skip
    for name in figures:
        assert (toy / "reports" / "run" / name).is_file()  # what is in them: tests/reporting
    measures = read_json(toy / "reports" / "run" / "metrics.json", "report")
    assert (
        measures["joint"]["accuracy/test"]
        == read_json(toy / "artifacts" / "evaluation" / "joint" / "seed-0" / "metrics.json", "")["accuracy/test"]
    )
    assert f"{100 * measures['joint']['completeness']:.1f}" in text


def test_photos_in_folders_go_through_every_stage(photos: Path) -> None:
    measures = read_json(photos / "reports" / "run" / "metrics.json", "report")
    assert measures["base"]["accuracy/test"] > 0.6
    assert {"accuracy/inverted", "accuracy/corruptions"} <= set(measures["base"]) and "completeness" not in measures[
        "base"
    ]
    text = (photos / "reports" / "run" / "results.md").read_text()
    assert "| row | test | inverted | corruptions |" in text and "completeness" not in text
    assert load(photos / BASE).class_names == NAMES


def test_mlflow_names_the_content_of_the_photos_that_were_evaluated(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(photos)
    data = DataParams(**yaml.safe_load(Path("params.yaml").read_text())["data"])
    mlflow.set_tracking_uri(os.environ["MLFLOW_TRACKING_URI"])
    for stage, split in (("evaluate_ood", "test"), ("detect_misclassifications", "train")):
        runs = mlflow.search_runs(
            search_all_experiments=True, filter_string=f"tags.stage = '{stage}'", output_format="list"
        )
        assert open_split(data, split, 1).identity in {run.data.tags["data"] for run in runs}


def test_histories_hold_an_epoch_a_line_and_no_times(toy: Path) -> None:
    lines = (toy / "artifacts" / "models" / "joint" / "seed-0" / "history.jsonl").read_text().splitlines()
    assert len(lines) == smoke()["retraining"]["epochs"]
    assert '"train/augment"' in lines[0] and '"train/mc"' in lines[0] and "time" not in lines[0]


@pytest.mark.parametrize("stage", ("generate_masks", "retrain"))
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
            retrain.main(row="masks_rounds", seed=0, base=BASE, filters=FILTERS, masks=MASKS, out=Path(out))
        return Path(out)

    whole = run_into(f"{stage}-whole")
    owner, name = {
        "generate_masks": (masks_module, "searched"),
        "retrain": (rounds_module, "save_checkpoint"),
    }[stage]
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
    assert contents(resumed) == contents(whole)
    assert not Path(f"{stage}-killed.partial").exists() and len(list(whole.iterdir())) > 3


def contents(folder: Path) -> dict[str, bytes]:
    """The bytes of a folder's files, its marker left out: it names the stage, row and seed."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != MARKER}


def test_what_params_do_not_ask_for_is_left_out_of_the_work_and_of_the_report(store: None, tmp_path: Path) -> None:
    raw = smoke()
    raw["rows"], raw["evaluated"] = ["continued"], ["base", "continued"]
    raw["faithfulness"] |= {"rows": ["base"], "selectors": []}
    folder = run_pipeline(tmp_path / "alone", raw)
    for place in (FILTERS, MASKS, DETECTION, ARTIFACTS / "faithfulness" / "base" / "seed-0"):
        assert read_json(folder / place / "summary.json", "") == {"asked": False}, place
        assert {path.name for path in (folder / place).iterdir()} == {MARKER, "summary.json"}
    text = (folder / "reports" / "run" / "results.md").read_text()
    assert "| `continued` |" in text and "gallery.png" not in text and "filter_heat_map.png" not in text


def test_a_row_that_needs_what_was_not_asked_for_says_what_to_run(store: None, toy: Path, tmp_path: Path) -> None:
    shutil.copytree(toy / "artifacts", tmp_path / "artifacts")
    shutil.rmtree(tmp_path / MASKS)
    (tmp_path / MASKS).mkdir()
    (tmp_path / MASKS / "summary.json").write_text('{"asked": false}\n')
    assert "generate_masks" in refused(tmp_path, smoke(), *RETRAIN)


def test_several_seeds_are_averaged_and_told_apart(store: None, tmp_path: Path) -> None:
    raw = smoke()
    raw["seeds"], raw["rows"], raw["evaluated"] = [0, 3], ["continued"], ["base", "continued"]
    raw["faithfulness"] |= {"rows": ["base"], "selectors": []}
    folder = run_pipeline(tmp_path / "seeds", raw)
    text = (folder / "reports" / "run" / "results.md").read_text()
    assert "2 seeds" in text and " ± " in text
    stored = [folder / "artifacts" / "evaluation" / "base" / f"seed-{seed}" / "metrics.json" for seed in (0, 3)]
    each = [read_json(path, "")["accuracy/corruptions"] for path in stored]
    mean = read_json(folder / "reports" / "run" / "metrics.json", "")["base"]["accuracy/corruptions"]
    assert mean == pytest.approx(sum(each) / 2) and each[0] != each[1]


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("masks.regions", 37, "a grid needs a square number, such as 36 or 49"),
        ("model.explained_layer", "layer9", "'layer9' does not exist in test_resnet"),
        ("retraining.trainable", ["layer7"], "'layer7' is neither 'all' nor 'head'"),
        ("detection.candidates", 1, "'detection.candidates' is 1"),
        ("rows", ["continued", "everything"], "'everything' is not a retraining row"),
        ("evaluation.corruptions", ["rain"], "'rain' is not a corruption"),
        ("masks.selector", "filter_cam", "put 'filter_cam' into faithfulness.selectors"),
        ("background.source", "prior", "prior.safetensors does not exist: train the prior first"),
        ("masks.fido", {"infill": "none"}, "masks.fido"),
        ("model.name", "resnet_fifty", "is not a timm model"),
        ("data.codebirds.length", 9, "data.codebirds"),
        ("training.batch_size", 100_000, "training.batch_size is 100000, which needs more than"),
        ("run.threads", 5000, f"run.threads is 5000, and this machine has {os.cpu_count()} cores"),
        ("data.memory_mib", 2**20 - 1, "data.memory_mib is 1048575, and this machine has 4,096 MiB"),
        ("tuning.row", "everything", "'everything' is not a retraining row"),
        ("tuning.parameters", {"loss.lambda": {"values": [1.0, 2.0]}}, "'loss.lambda' is not a parameter"),
        (
            "tuning.ablations",
            {"one": {"row": "filters", "parameters": {"loss.lambda_mc": {"values": [-1.0, 0.0]}}}},
            "'loss.lambda_mc' cannot be -1.0",
        ),
    ],
)
def test_the_first_stage_refuses_what_a_later_one_could_not_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str, value: object, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(check_inputs, "memory_mib", lambda _device: 4096)
    raw = smoke()
    *parents, last = path.split(".")
    level = raw
    for key in parents:
        level = level[key]
    level[last] = value
    Path("params.yaml").write_text(yaml.safe_dump(raw))
    with pytest.raises(UserError) as caught:
        check_inputs.main(out=Path("out"))
    assert message in str(caught.value) and str(caught.value).isprintable()
    assert [place.name for place in Path().iterdir()] == ["params.yaml"]


def test_a_row_does_not_replace_what_it_is_retrained_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("params.yaml").write_text(yaml.safe_dump(smoke()))
    places = {name: tmp_path / name for name in ("base", "filters", "masks")}
    for place in places.values():
        with pytest.raises(UserError, match="is what this stage reads"):
            retrain.main("masks", 0, **places, out=place)


def test_inputs_change_with_code_and_data_and_with_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    def inputs(raw: dict) -> dict[str, dict]:
        Path("params.yaml").write_text(yaml.safe_dump(raw))
        check_inputs.main(out=Path("inputs"))
        return {path.stem: read_json(path, "") for path in Path("inputs").glob("*.json")}

    raw = smoke()
    before = inputs(raw)
    raw["loss"]["lambda_mc"] = 0.5
    assert inputs(raw) == before  # what a stage reads of params.yaml is named in dvc.yaml
    raw["data"]["codebirds"]["seed"] = 5
    changed = {stage for stage, content in inputs(raw).items() if content != before[stage]}
    assert changed == set(before) - {"report"}
    digits_tree(tmp_path / "digits", classes=4, per_class=8)
    raw["data"] |= {"source": "folder", "root": "digits", "folder": {"image_size": 32}}
    photos = inputs(raw)
    (victim,) = sorted((tmp_path / "digits" / "test" / "digit-0").iterdir())[:1]
    Image.open(victim).rotate(90).save(victim)
    assert {stage for stage, content in inputs(raw).items() if content != photos[stage]} == set(check_inputs.EVALUATION)


def test_other_pretrained_weights_train_another_base_and_change_no_other_input(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    raw = smoke()
    raw["model"] |= {"pretrained": True, "weights": "weights.pth"}

    def inputs(seed: int) -> dict[str, dict]:
        torch.manual_seed(seed)
        torch.save(timm.create_model(raw["model"]["name"]).state_dict(), "weights.pth")
        Path("params.yaml").write_text(yaml.safe_dump(raw))
        check_inputs.main(out=Path("inputs"))
        return {path.stem: read_json(path, "") for path in Path("inputs").glob("*.json")}

    one, other = inputs(1), inputs(2)
    assert {stage for stage in one if one[stage] != other[stage]} == {"train_base"}
    raw["model"]["name"] = "test_resnet" if raw["model"]["name"] != "test_resnet" else "test_vit"
    Path("params.yaml").write_text(yaml.safe_dump(raw | {"model": raw["model"] | {"explained_layer": "norm"}}))
    with pytest.raises(UserError, match="'weights.pth' is no state dict of test_"):
        check_inputs.main(out=Path("inputs"))


NOTEBOOKS = {
    "00_results": 2,
    "01_explain_an_image": 5,
    "02_filters_of_a_class": 2,
    "03_your_own_photographs": 3,
    "04_all_explanations": 3,
}
"""Name → the fewest pictures that it shows."""


@pytest.mark.parametrize(
    ("source", "name"), [("codebirds", name) for name in NOTEBOOKS] + [("photos", "01_explain_an_image")]
)
def test_the_notebooks_show_what_the_stages_wrote_when_opened_from_their_folder(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, source: str, name: str
) -> None:
    assert {path.stem for path in (ROOT / "notebooks").glob("*.ipynb")} == set(NOTEBOOKS)
    monkeypatch.setenv("EVERYCAUSE_ROOT", str(request.getfixturevalue({"codebirds": "toy"}.get(source, source))))
    monkeypatch.delenv("PYTHONPATH", raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # two threads beside another test wait for each other by spinning
    notebook = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)
    notebook.cells.append(nbformat.v4.new_code_cell("import everycause; print(everycause.__file__)"))
    done = NotebookClient(notebook, timeout=1200, kernel_name="python3").execute(cwd=str(ROOT / "notebooks"))
    outputs = [output for cell in done.cells for output in cell.get("outputs", [])]
    pictures = [output for output in outputs if "image/png" in output.get("data", {})]
    assert len(pictures) >= NOTEBOOKS[name]
    assert outputs[-1]["text"].strip() == str(ROOT / "everycause" / "__init__.py")


def test_the_readme_takes_the_table_between_its_markers(tmp_path: Path) -> None:
    copy = tmp_path / "README.md"
    shutil.copy(ROOT / "README.md", copy)
    table = tmp_path / "table.md"
    table.write_text("| row | gain |\n|---|---|\n| `masks` | +7 |\n")
    readme.main(copy, table)
    text = copy.read_text()
    assert table.read_text().strip() in text
    readme.main(copy, table)
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


def diverging(raw: dict) -> None:
    raw["retraining"]["optimizer"] |= {"name": "sgd", "learning_rate": 1000.0}


def wrong_layer(raw: dict) -> None:
    raw["model"]["explained_layer"] = "layer7"


def wrong_model(raw: dict) -> None:
    raw["model"]["name"] = "resnet_fifty"


def no_cuda(raw: dict) -> None:
    raw["run"]["device"] = "cuda"


def unknown_key(raw: dict) -> None:
    raw["tuning"]["surprise"] = 1


def no_folder(raw: dict) -> None:
    raw["data"]["source"], raw["data"]["root"] = "folder", "nowhere"


TRAIN = ("stages.train_base", "--seed", "0", "--out", "out")
ACCUMULATE = ("stages.accumulate_filters", "--seed", "0", "--base", str(BASE), "--out", "out")
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
        (diverging, RETRAIN, "row joint: the loss is"),
    ],
    ids=lambda value: value.__name__ if callable(value) else None,
)
def test_bad_input_is_one_sentence_and_leaves_nothing(
    toy: Path, tmp_path: Path, mistake: Callable[[dict], None], command: tuple[str, ...], message: str
) -> None:
    shutil.copytree(toy / "artifacts", tmp_path / "artifacts")
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


def test_classes_without_confident_images_cost_only_the_rows_that_need_filters(toy: Path, tmp_path: Path) -> None:
    shutil.copytree(toy / "artifacts", tmp_path / "artifacts")
    raw = smoke()
    raw["filters"]["confidence_threshold"] = 0.9999
    shutil.rmtree(tmp_path / FILTERS)
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(raw))
    before = Path.cwd()
    os.chdir(tmp_path)
    try:
        accumulate_filters.main(seed=0, base=BASE, out=FILTERS)
        retrain.main(row="continued", seed=0, base=BASE, filters=FILTERS, masks=MASKS, out=Path("continued"))
        detect_misclassifications.main(seed=0, base=BASE, filters=FILTERS, out=Path("detection"))
    finally:
        os.chdir(before)
    assert read_json(tmp_path / FILTERS / "summary.json", "")["smallest_support"] == 0
    said = refused(tmp_path, raw, *RETRAIN)
    assert "the row 'joint' needs filters, and no class has any" in said and "confidence_threshold" in said
