"""`tune` on a toy of the embedded data: what a trial is, what it reuses, what MLflow shows, what is refused."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import mlflow
import pandas
import pytest
import torch
import yaml

from everycause import params as params_module
from everycause import tracking
from everycause.errors import UserError
from everycause.explanation import filters as filters_module
from everycause.tuning import trial as sweep_module
from everycause.tuning import upstream as upstream_module
from everycause.tuning.loop import RunningTrial
from everycause.tuning.trial import Sweep, prepared, trial, with_values
from stages import accumulate_filters, generate_masks, retrain, train_base, tune
from tests.conftest import ROOT, make_classifier

ARTIFACTS = Path("artifacts")
BASE, FILTERS, MASKS = (
    ARTIFACTS / "models" / "base" / "seed-0",
    ARTIFACTS / "filters" / "minimum_correct" / "seed-0",
    ARTIFACTS / "masks" / "counterfactual" / "seed-0",
)
ROWS = ("continued", "filters", "masks", "joint", "masks_rounds")


def smoke(**tuning: object) -> dict:
    raw = yaml.safe_load((ROOT / "profiles" / "smoke.yaml").read_text())
    raw["tracking"]["system_metrics_seconds"] = 0.0
    raw["run"]["threads"] = 1
    raw["tuning"] |= tuning
    return raw


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with everything that a sweep reads."""
    folder = tmp_path_factory.mktemp("sweep")
    os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder / 'mlflow.db'}"
    before = Path.cwd()
    os.chdir(folder)
    Path("params.yaml").write_text(yaml.safe_dump(smoke()))
    train_base.main(seed=0, out=BASE)
    accumulate_filters.main(seed=0, base=BASE, out=FILTERS)
    generate_masks.main(seed=0, base=BASE, out=MASKS)
    for row in ROWS:
        retrain.main(
            row=row, seed=0, base=BASE, filters=FILTERS, masks=MASKS, out=ARTIFACTS / "models" / row / "seed-0"
        )
    yield folder
    os.chdir(before)
    del os.environ["MLFLOW_TRACKING_URI"]


@pytest.fixture
def toy(made: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same, with no study yet."""
    monkeypatch.chdir(made)
    shutil.rmtree("tuning", ignore_errors=True)
    return made


def swept(raw: dict, **more: object) -> pandas.DataFrame:
    """The table of a sweep with these params."""
    Path("params.yaml").write_text(yaml.safe_dump(raw))
    tune.main(artifacts=ARTIFACTS, out=Path("proposal"), **more)
    return pandas.read_csv("proposal/trials.csv")


def sweep_of(raw: dict, ablation: str = "") -> Sweep:
    params = params_module.validated(raw, "params.yaml")
    return prepared(params, params.tuning.plan(ablation), ARTIFACTS, Path("tuning/upstream"), 1, torch.device("cpu"))


def runs_of(study: str) -> list[mlflow.entities.Run]:
    mlflow.set_tracking_uri(tracking.tracking_uri())
    return mlflow.search_runs(
        experiment_names=["everycause-tuning"], filter_string=f"tags.study = '{study}'", output_format="list"
    )


def contents() -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in sorted(ARTIFACTS.rglob("*")) if path.is_file()}


def test_a_sweep_reuses_what_exists_proposes_and_goes_on_in_one_mlflow_run(toy: Path) -> None:
    before = contents()
    for trials in (2, 3):
        table = swept(smoke(study="going-on", trials=trials))
        assert list(table["state"]) == ["complete"] * trials
    assert "selected by the highest validation completeness" in Path("proposal/best_params.yaml").read_text()
    assert contents() == before and not Path("tuning/upstream").exists()
    (parent,) = (run for run in runs_of("going-on") if "mlflow.parentRunId" not in run.data.tags)
    trials_logged = [
        run for run in runs_of("going-on") if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id
    ]
    assert {run.info.run_name for run in trials_logged} == {f"trial-{number} · going-on" for number in range(3)}
    for run in trials_logged:
        assert run.info.status == "FINISHED" and run.data.tags["state"] == "complete"
        assert "loss.lambda_mc" in run.data.params and {
            "best/validation_completeness",
            "train/mc",
            "validation/accuracy",
        } <= set(run.data.metrics)
        curve = mlflow.MlflowClient().get_metric_history(run.info.run_id, "validation/accuracy")
        assert [point.step for point in curve] == list(range(1, smoke()["retraining"]["epochs"] + 1))
    attached = {file.path for file in mlflow.MlflowClient().list_artifacts(parent.info.run_id)}
    assert {"best_params.yaml", "report.md", "trials.csv", "history.png", "parallel_coordinates.png"} <= attached


def test_an_ablation_tries_its_grid_beside_the_continued_base(toy: Path) -> None:
    Path("params.yaml").write_text(yaml.safe_dump(smoke()))
    tune.main(artifacts=ARTIFACTS, out=Path("ablations"), ablation="sparsity")
    table = pandas.read_csv("ablations/sparsity/trials.csv")
    assert list(table["filters.heads.sparsity"]) == [1.0, 2.0] and {
        "validation completeness",
        "filters_per_class",
    } <= set(table.columns)
    assert Path("ablations/sparsity/grid.png").is_file()
    assert set(sweep_of(smoke(), "sparsity").reference()) == {"validation completeness", "validation accuracy"}


@pytest.mark.parametrize("row", ROWS)
def test_a_trial_with_the_present_values_is_the_row_that_the_pipeline_retrains_byte_for_byte(
    toy: Path, tmp_path: Path, row: str
) -> None:
    sweep = sweep_of(smoke())
    torch.rand(7)  # what went before in the process must not matter
    started = trial(sweep.cache, row, sweep.params, sweep.data, 1, 0)
    epochs = list(started.epochs)
    started.classifier.save(tmp_path)
    assert (tmp_path / "model.safetensors").read_bytes() == (
        ARTIFACTS / "models" / row / "seed-0" / "model.safetensors"
    ).read_bytes()
    assert [epoch.number for epoch in epochs] == list(range(1, smoke()["retraining"]["epochs"] + 1))


def test_what_a_trial_does_not_change_is_not_made_again(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []

    def counted(module: object, name: str) -> None:
        real = getattr(module, name)
        monkeypatch.setattr(
            module, name, lambda *arguments, **options: (made.append(name), real(*arguments, **options))[1]
        )

    counted(upstream_module, "generate")
    counted(upstream_module, "train_base")
    counted(filters_module, "head_blocks")
    sweep = sweep_of(smoke())

    def upstream_of(values: dict) -> list[str]:
        made.clear()
        trial(sweep.cache, "joint", with_values(sweep.params, values), sweep.data, 1, 0)
        return sorted(made)

    assert (
        upstream_of({"loss.lambda_mc": 0.5})
        == upstream_of({"filters.confidence_threshold": 0.2})
        == upstream_of({"background.source": "own"})
        == []
    )
    assert (
        upstream_of({"filters.heads.sparsity": 1.0}) == ["head_blocks"]
        and upstream_of({"filters.heads.sparsity": 1.0}) == []
    )
    assert (
        upstream_of({"masks.baseline": "zeros"}) == ["generate"]
        and upstream_of({"masks.baseline": "zeros", "loss.lambda_mc": 0.5}) == []
    )
    assert (
        upstream_of({"training.epochs": 1}) == ["generate", "head_blocks", "train_base"]
        and upstream_of({"training.epochs": 1}) == []
    )
    another = sweep_of(smoke())  # another worker finds on disk what the first one made; heads it trains itself
    made.clear()
    trial(another.cache, "joint", with_values(another.params, {"training.epochs": 1}), another.data, 1, 0)
    assert made == ["head_blocks"]


def test_a_trial_makes_only_what_its_row_needs(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unwanted(*_: object, **__: object) -> None:
        raise AssertionError("nobody asked for it")

    sweep = sweep_of(smoke())
    monkeypatch.setattr(type(sweep.cache), "bank", unwanted)
    assert trial(sweep.cache, "masks", sweep.params, sweep.data, 1, 0).filters == {}
    monkeypatch.setattr(type(sweep.cache), "masks", unwanted)
    trial(sweep.cache, "continued", sweep.params, sweep.data, 1, 0)


def test_masks_that_a_trial_makes_anew_are_those_that_the_stage_would_make(toy: Path) -> None:
    raw = smoke()
    raw["masks"]["baseline"] = "zeros"
    Path("params.yaml").write_text(yaml.safe_dump(raw))
    generate_masks.main(seed=0, base=BASE, out=Path("other-masks"))
    sweep = sweep_of(smoke())
    sweep.cache.masks(BASE, with_values(sweep.params, {"masks.baseline": "zeros"}), 0)
    (kept,) = Path("tuning/upstream/masks").glob("*/masks-*.safetensors")
    assert kept.read_bytes() == (Path("other-masks") / kept.name).read_bytes()


def test_seeds_are_averaged_objectives_make_a_front_and_names_are_tuned(toy: Path) -> None:
    objectives = ["validation accuracy", "validation completeness"]
    parameters = {
        "background.source": {"values": ["bank", "own"]},
        "masks.max_regions": {"low": 2.0, "high": 8.0, "log": False},
    }
    present = smoke()["masks"]["max_regions"]
    parameters["masks.max_regions"]["high"] = float(max(present, 8))
    raw = smoke(
        study="both",
        objectives=objectives,
        seeds=[0, 1],
        pruner="none",
        sampler="nsga2",
        row="masks",
        parameters=parameters,
        trials=3,
    )
    table = swept(raw)
    assert (
        table["front"].any()
        and set(table["background.source"]) <= {"bank", "own"}
        and table["masks.max_regions"][0] == present
    )
    assert (
        Path("proposal/pareto_front.png").is_file()
        and len(list(Path("tuning/upstream/base").glob("*/model.safetensors"))) == 1
    )
    sweep = sweep_of(raw)
    alone = []
    for seed in (0, 1):
        started = trial(sweep.cache, "masks", sweep.params, sweep.data, 1, seed)
        list(started.epochs)
        alone.append(sweep.judge.measures(started.classifier))
    for name in objectives:
        assert table[name][0] == pytest.approx((alone[0][name] + alone[1][name]) / 2, abs=1e-12)
    assert alone[0] != alone[1]


class Told:
    """An Optuna trial that is told by the test how to go on."""

    def __init__(self, prune: bool) -> None:
        self.study, self.prune, self.reported = SimpleNamespace(), prune, []

    def report(self, value: float, step: int) -> None:
        self.reported.append((step, value))

    def should_prune(self) -> bool:
        return self.prune

    def set_user_attr(self, name: str, value: object) -> None:
        self.run = value


def test_a_pruned_trial_is_killed_and_a_failed_one_failed_in_mlflow(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep = sweep_of(smoke(study="states", seeds=[0, 1]))
    pruned, failed = Told(prune=True), Told(prune=False)
    assert sweep.measures(RunningTrial(0, sweep.present, pruned, range(1, 2)), None) is None
    assert [step for step, _ in pruned.reported] == [1]  # and the second seed is not begun
    assert -1 < pruned.reported[0][1] <= 1

    def diverges(*_: object) -> None:
        raise UserError("row joint: the loss is nan")

    monkeypatch.setattr(sweep_module, "trial", diverges)
    with pytest.raises(ValueError, match="the loss is nan"):
        sweep.measures(RunningTrial(1, sweep.present, failed, range(1, 2)), None)
    mlflow.set_tracking_uri(tracking.tracking_uri())
    states = [
        (mlflow.get_run(enqueued.run).info.status, mlflow.get_run(enqueued.run).data.tags["state"])
        for enqueued in (pruned, failed)
    ]
    assert states == [("KILLED", "pruned"), ("FAILED", "failed")]
    assert mlflow.get_run(failed.run).data.tags["reason"] == "row joint: the loss is nan"


def command(folder: Path, raw: dict, *more: str) -> "subprocess.CompletedProcess[str]":
    (folder / "params.yaml").write_text(yaml.safe_dump(raw))
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    called = [sys.executable, "-m", "stages.tune", "--artifacts", "artifacts", "--out", "proposal", *more]
    return subprocess.run(called, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_two_workers_make_one_study_under_one_mlflow_run(toy: Path) -> None:
    done = command(toy, smoke(study="two", trials=4), "--workers", "2")
    assert done.returncode == 0, done.stderr
    # which trials are pruned depends on which worker is faster
    states = list(pandas.read_csv("proposal/trials.csv")["state"])
    assert len(states) == 4 and set(states) <= {"complete", "pruned"} and "complete" in states
    parents = {run.data.tags.get("mlflow.parentRunId") for run in runs_of("two")}
    (parent,) = parents - {None}
    assert {run.info.run_id for run in runs_of("two") if "mlflow.parentRunId" not in run.data.tags} == {parent}
    assert len(runs_of("two")) == 5 and {run.info.status for run in runs_of("two")} <= {"FINISHED", "KILLED"}


def unknown_path(raw: dict) -> None:
    raw["tuning"]["parameters"]["loss.lamda_mc"] = {"low": 0.0, "high": 1.0, "log": False}


def narrow_range(raw: dict) -> None:
    raw["tuning"]["parameters"]["loss.lambda_augment"] = {"low": 1.5, "high": 2.0, "log": False}


def impossible_end(raw: dict) -> None:
    raw["tuning"]["parameters"]["filters.confidence_threshold"] = {"low": 0.05, "high": 1.0, "log": False}


def shifted_objective(raw: dict) -> None:
    raw["tuning"]["objectives"] = ["sketch"]


def unknown_row(raw: dict) -> None:
    raw["tuning"]["row"] = "jiont"


def idle_parameter(raw: dict) -> None:
    raw["tuning"]["row"] = "masks"
    raw["tuning"]["parameters"] = {"loss.lambda_mc": raw["tuning"]["parameters"]["loss.lambda_mc"]}


def nothing(_raw: dict) -> None: ...


@pytest.mark.parametrize(
    ("mistake", "more", "message"),
    [
        (
            unknown_path,
            {},
            "'loss.lamda_mc' is not a parameter that a trial can change, did you mean 'loss.lambda_mc'?",
        ),
        (narrow_range, {}, "the range 1.5 … 2.0 excludes the present value 1.0"),
        (impossible_end, {}, "'filters.confidence_threshold' cannot be 1.0: input should be less than 1"),
        (shifted_objective, {}, "'sketch' is not among the measures of validation images"),
        (unknown_row, {}, "'jiont' is not a retraining row"),
        (idle_parameter, {}, "'loss.lambda_mc' changes nothing in the row 'masks'"),
        (nothing, {"ablation": "nothing"}, "tuning.ablations has no 'nothing'"),
        (nothing, {"workers": 0}, "--workers 0 must be 1 or more"),
        (nothing, {"artifacts": Path("elsewhere")}, "run the stage train_base first"),
        (
            nothing,
            {"storage": "sqlite:////nowhere/study.db"},
            "the storage sqlite:////nowhere/study.db is not to be had",
        ),
    ],
    ids=lambda value: value.__name__ if callable(value) else None,
)
def test_bad_input_is_one_sentence_and_leaves_nothing(
    toy: Path, mistake: Callable[[dict], None], more: dict, message: str
) -> None:
    shutil.rmtree("proposal", ignore_errors=True)
    raw = smoke()
    mistake(raw)
    Path("params.yaml").write_text(yaml.safe_dump(raw))
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        tune.main(**({"artifacts": ARTIFACTS, "out": Path("proposal")} | more))
    assert "\n" not in str(caught.value) and not Path("proposal").exists() and not list(toy.rglob("*.partial"))


def test_a_base_of_other_classes_is_refused_before_any_trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    BASE.mkdir(parents=True)
    make_classifier().save(BASE)
    with pytest.raises(UserError, match="the model knows .* classes, and they are not the .* of 'train'"):
        sweep_of(smoke(study="other-classes"))


def test_on_the_command_line_a_refusal_is_a_sentence_without_a_password(toy: Path) -> None:
    done = command(toy, smoke(), "--storage", "postgresql://me:secret@127.0.0.1:1/studies")
    assert done.returncode == 1 and done.stderr.startswith(
        "error: the storage postgresql://me:***@127.0.0.1:1/studies is not to be had"
    )
    assert "Traceback" not in done.stderr and "secret" not in done.stderr and done.stderr.count("\n") == 1


def test_a_study_of_other_params_is_refused_with_the_difference_and_an_adopted_winner_is_not(toy: Path) -> None:
    swept(smoke(study="once", trials=1))
    raw = smoke(study="once", trials=1)
    raw["retraining"]["optimizer"]["learning_rate"] = 0.5
    with pytest.raises(
        ValueError,
        match=r"made with something else .*learning_rate: .* → 0.5",
    ):
        swept(raw)
    adopted = smoke(study="once", trials=2)
    adopted["loss"]["lambda_augment"] = 0.5
    assert len(swept(adopted)) == 2


@pytest.mark.parametrize("value", ["x; touch made #", "$(shell touch made)", "`touch made`", "a'b\"c $$HOME"])
def test_what_a_variable_of_make_holds_reaches_the_stage_as_it_is_and_is_not_run(tmp_path: Path, value: str) -> None:
    (tmp_path / "Makefile").write_text((ROOT / "Makefile").read_text())
    (tmp_path / "shown.mk").write_text(
        f"include Makefile\nshown:\n\t@{sys.executable} -c "
        """'import os; print(*(os.environ[one] for one in ("port", "name", "workers", "storage")), sep="\\n")'\n"""
    )
    given = {name: value for name in ("port", "name", "workers", "storage")}
    for words, environment in (([f"{name}={one}" for name, one in given.items()], {}), ([], given)):
        called = ["make", "--no-print-directory", "-f", "shown.mk", "shown", *words]
        whole = {**os.environ, **environment}
        done = subprocess.run(called, cwd=tmp_path, env=whole, capture_output=True, text=True, check=True)
        assert done.stdout.splitlines() == [value] * 4 and not (tmp_path / "made").exists()


def test_commands_of_make_read_variables_from_the_environment_alone() -> None:
    recipes = [line for line in (ROOT / "Makefile").read_text().splitlines() if line.startswith("\t")]
    for name in ("port", "name", "workers", "storage"):
        uses = [use for line in recipes for use in re.findall(rf".?\$[({{$]*{name}\b.?", line)]
        assert uses and set(uses) == {f'"$${name}"'}, name


def test_the_sweep_explains_itself() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "stages.tune", "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "--storage" in done.stdout and "--workers" in done.stdout and "A journal file, a database URL" in done.stdout
