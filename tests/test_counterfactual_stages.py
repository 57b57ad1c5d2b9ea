"""The stages of `make counterfactuals` on a toy: what they write, that they go on and do not repeat, and bad input."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
import pytest
import yaml

from everycause.artifacts import MARKER, read_json
from everycause.data.sources import open_split
from everycause.errors import UserError
from everycause.explanation import counterfactual_images
from everycause.explanation.counterfactual_images import CounterfactualImages
from everycause.models import model_fingerprint
from everycause.params import read
from stages import generate_counterfactuals, measure_counterfactuals, train_base, train_prior
from stages.entry import KEY
from tests.conftest import ROOT

BASE, PRIOR = Path("base"), Path("prior")
IMAGES = Path("counterfactuals")


def smoke() -> dict:
    raw = yaml.safe_load((ROOT / "profiles" / "smoke.yaml").read_text())
    raw["tracking"]["system_metrics_seconds"] = 0.0
    raw["run"]["threads"] = 1
    raw["counterfactuals"]["factors"] |= {"hidden": 16}
    return raw


def make(method: str, out: Path = IMAGES) -> None:
    generate_counterfactuals.main(base=BASE, prior=PRIOR, out=out, method=method)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which every stage has run."""
    os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{tmp_path_factory.mktemp('mlflow') / 'mlflow.db'}"
    place, before = tmp_path_factory.mktemp("toy"), Path.cwd()
    (place / "params.yaml").write_text(yaml.safe_dump(smoke()))
    os.chdir(place)
    try:
        train_base.main(seed=0, out=BASE)
        train_prior.main(out=PRIOR)
        generate_counterfactuals.main(base=BASE, prior=PRIOR, out=IMAGES)
        measure_counterfactuals.main(base=BASE, decoder=BASE, images=IMAGES, out=Path("report"))
    finally:
        os.chdir(before)
    yield place
    del os.environ["MLFLOW_TRACKING_URI"]


@pytest.fixture
def toy(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder as the working directory, with the params of the toy."""
    monkeypatch.chdir(folder)
    (folder / "params.yaml").write_text(yaml.safe_dump(smoke()))
    return folder


def with_params(**changes: object) -> None:
    raw = smoke()
    for name, value in changes.items():
        section, key = name.split("__")
        raw[section][key] = value
    Path("params.yaml").write_text(yaml.safe_dump(raw))


def test_every_method_stands_in_the_table_and_the_gallery_is_drawn(toy: Path) -> None:
    table = pd.read_csv("report/table.csv")
    assert list(table.columns) == ["method", "measure", "value", "low", "high"]
    methods = {*smoke()["counterfactuals"]["methods"], "target_parts_rendered", "target_scene_rendered"}
    assert set(table["method"]) == methods
    ideal = table[table["method"] == "target_parts_rendered"].set_index("measure")["value"]
    assert ideal["decodes"] == 1 and ideal["scene_stayed"] == 1
    assert Path("report/gallery.png").stat().st_size > 10_000 and Path("prior/samples.png").stat().st_size > 10_000
    assert len(Path("prior/history.jsonl").read_text().splitlines()) == smoke()["prior"]["epochs"]


def test_the_images_are_those_of_the_validation_split_that_are_predicted_correctly(toy: Path) -> None:
    validation = open_split(read("data").data, "validation", 1)
    found = CounterfactualImages.load(IMAGES / "ace" / "seed-0", model_fingerprint(BASE), validation.identity)
    assert len(found.index) == smoke()["counterfactuals"]["images"]
    assert (found.prediction == validation.labels[found.index]).all() and (found.target != found.prediction).all()
    summary = read_json(IMAGES / "ace" / "seed-0" / "summary.json", "generate_counterfactuals")
    assert summary["prior"] == "diffusion" and summary["reached"] == float(found.reached.double().mean())
    pixel = read_json(IMAGES / "pixel_attack" / "seed-0" / "summary.json", "generate_counterfactuals")
    assert pixel["prior"] == "pixel attack"


def test_finished_work_is_not_repeated_and_changed_params_are(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = IMAGES / "ace" / "seed-0"
    before = (out / KEY).read_text()

    def refused(*_arguments: object) -> None:
        raise AssertionError("it runs again")

    monkeypatch.setattr(generate_counterfactuals, "generate", refused)
    monkeypatch.setattr(train_prior, "train_prior", refused)
    make("ace")
    train_prior.main(out=PRIOR)
    assert (out / KEY).read_text() == before
    with_params(counterfactuals__methods=["ace"])
    make("ace")  # other methods say nothing about this one
    with_params(counterfactuals__iterations=2)
    with pytest.raises(AssertionError, match="it runs again"):
        make("ace")
    with_params(prior__epochs=2)
    with pytest.raises(AssertionError, match="it runs again"):
        train_prior.main(out=PRIOR)


def test_a_killed_stage_goes_on_and_ends_in_the_same_bytes(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, real, calls = IMAGES / "cecas-1" / "seed-0", counterfactual_images.counterfactuals, []

    def killed(*arguments: object) -> object:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(counterfactual_images, "counterfactuals", killed)
    with pytest.raises(KeyboardInterrupt):
        make("cecas-1", Path("again"))
    assert not (Path("again") / "cecas-1" / "seed-0").exists()
    make("cecas-1", Path("again"))
    assert len(calls) == 3  # the first shard was not made again
    again = Path("again") / "cecas-1" / "seed-0"
    files = [{path.name: path.read_bytes() for path in place.iterdir()} for place in (whole, again)]
    for content in files:
        content.pop(MARKER)
    assert files[0] == files[1] and len(files[0]) > 4


def no_prior() -> None:
    with_params()
    generate_counterfactuals.main(base=BASE, prior=Path("nowhere"), out=Path("out"), method="ace")


def other_data() -> None:
    raw = smoke()
    raw["data"]["codebirds"]["seed"] = 1
    Path("params.yaml").write_text(yaml.safe_dump(raw))
    make("ace", Path("out"))


def unknown_attribute() -> None:
    with_params(counterfactuals__spurious_attribute="weather")
    make("pixel_attack", Path("out"))


def long_tau() -> None:
    with_params(counterfactuals__tau=60)
    make("ace", Path("out"))


def unknown_class() -> None:
    with_params(counterfactuals__target="kiwi")
    make("pixel_attack", Path("out"))


def no_images() -> None:
    with_params(counterfactuals__methods=["cecas-3"])
    measure_counterfactuals.main(base=BASE, decoder=BASE, images=IMAGES, out=Path("out"))


@pytest.mark.parametrize(
    ("mistake", "message"),
    (
        (no_prior, "does not exist: train the prior first"),
        (other_data, "was trained on other images"),
        (unknown_attribute, "spurious_attribute is 'weather', which data.source 'codebirds' does not know"),
        (long_tau, "tau is 60, and the chain has 10 steps"),
        (unknown_class, "target is 'kiwi'"),
        (no_images, "holds no counterfactual images: run `make counterfactuals` first"),
    ),
    ids=lambda value: value.__name__ if callable(value) else None,
)
def test_bad_input_is_one_sentence_and_leaves_nothing(toy: Path, mistake: Callable[[], None], message: str) -> None:
    with pytest.raises(UserError, match=message):
        mistake()
    assert not list(Path().glob("out/*/seed-0")) and not list(toy.rglob("*.partial"))


def test_known_scenes_can_supervise_the_spurious_factors(toy: Path) -> None:
    with_params(counterfactuals__spurious_attribute="scene")
    make("cecas-1", Path("supervised"))
    history = Path("supervised/cecas-1/seed-0/history.jsonl").read_text()
    assert '"factors/spurious_known"' in history and '"factors/imitation_agrees"' in history


def test_where_another_prior_is_named_none_is_trained_and_the_images_say_so(toy: Path) -> None:
    with_params(prior__source="none")
    train_prior.main(out=Path("untrained"))
    assert read_json(Path("untrained/summary.json"), "train_prior") == {"asked": False}
    make("ace", Path("without"))
    assert read_json(Path("without/ace/seed-0/summary.json"), "")["prior"] == "pixel attack"
