"""Shapes and types of the whole package are checked while the tests run."""

from jaxtyping import install_import_hook

import tests.typechecked  # noqa: F401 - the hook looks its checker up by name

with install_import_hook(("everycause", "codebirds"), "tests.typechecked.checked"):
    import everycause.evaluation.counterfactual_judgement
    import everycause.evaluation.predictions
    import everycause.explanation.prior_training
    import everycause.params
    import everycause.reporting.pictures
    import everycause.training.rows  # noqa: F401

import os
from pathlib import Path

import mlflow
import pytest
import torch
import yaml

from codebirds.birds import Codebirds
from everycause.data.images import Statistics
from everycause.data.sources import DataParams, open_split
from everycause.data.split import Split
from everycause.models import Classifier, ModelParams

ROOT = Path(__file__).parents[1]
REQUIRED = "EVERYCAUSE_SERVICES"
"""Set by .ci/run: a missing service is then a failure, not a skip."""
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SQLite file with MLflow's tables, to be copied: making them takes seconds."""
    file = tmp_path_factory.mktemp("store") / "mlflow.db"
    mlflow.MlflowClient(f"sqlite:///{file}").search_experiments()
    return file


@pytest.fixture
def raw() -> dict:
    """The raw smoke profile: tiny and complete."""
    return yaml.safe_load((ROOT / "profiles" / "smoke.yaml").read_text())


@pytest.fixture
def default_birds() -> Codebirds:
    """Codebirds as params.yaml has it."""
    raw = yaml.safe_load((ROOT / "params.yaml").read_text())
    return Codebirds(DataParams(**raw["data"]).codebirds.settings)


@pytest.fixture
def data_params(raw: dict) -> DataParams:
    return DataParams(**raw["data"])


@pytest.fixture
def birds(data_params: DataParams) -> Codebirds:
    return Codebirds(data_params.codebirds.settings)


@pytest.fixture
def train(data_params: DataParams) -> Split:
    return open_split(data_params, "train", 1)


MODEL = ModelParams(
    name="test_resnet", pretrained=False, weights="cache", explained_layer="layer4", head="published", dropout=0.0
)
STATISTICS = Statistics((0.45, 0.45, 0.45), (0.2, 0.2, 0.2))


def make_classifier(seed: int = 0, classes: int = 4, size: int = 32) -> Classifier:
    """An untrained classifier; its logits are spread out so that predictions differ between images."""
    torch.manual_seed(seed)
    classifier = Classifier(MODEL, tuple(f"class-{i}" for i in range(classes)), size, STATISTICS)
    with torch.no_grad():
        classifier.network.get_classifier().weight.normal_(0, 1.0)
    return classifier.to(memory_format=torch.channels_last).eval()


@pytest.fixture
def classifier() -> Classifier:
    return make_classifier()


@pytest.fixture
def at_root(monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(ROOT)
    return ROOT


def missing(what: str) -> None:
    """Skip a test whose service is not installed, or fail it where services are required."""
    if os.environ.get(REQUIRED):
        pytest.fail(f"{what} is not installed, and {REQUIRED} asks for it")
    pytest.skip(f"{what} is not installed")


def shared_data(name: str) -> Path:
    """The folder of a shared data set beside the repository, or a skip that says where it should be."""
    folder = ROOT.parent / "shared" / "data" / name
    if not folder.is_dir():
        pytest.skip(f"the data set '{name}' is not at hand: {folder} is no folder")
    return folder
