"""Pretrained networks see photographs as they were trained: interpolation, crop and statistics, in every stage."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import yaml
from PIL import Image

from everycause.data.cub import Cub, CubParams
from everycause.data.folder import FolderParams
from everycause.data.imagenet import ImageNetParams
from everycause.data.images import Framing, squared
from everycause.data.sources import DataParams, open_split
from everycause.errors import UserError
from everycause.explanation.inputs import preprocessing_of
from everycause.inference import open_classifier
from everycause.models import FILE, Classifier, ModelParams, framing_of, load
from everycause.networks import own_framing, own_statistics
from everycause.params import read
from everycause.tuning.trial import prepared
from everycause.tuning.upstream import TrialParams
from stages import (
    accumulate_filters,
    detect_misclassifications,
    evaluate_ood,
    generate_masks,
    measure_faithfulness,
    retrain,
    train_base,
)
from tests.conftest import MODEL, STATISTICS
from tests.trees import cub_tree, digits_tree

FRAMING = Framing("bilinear", 0.875, "center")
PRETRAINED = ModelParams(
    name="resnet18.tv_in1k", pretrained=True, weights="cache", explained_layer="maps", head="linear", dropout=0.0
)
CPU = torch.device("cpu")


class Opened(Exception):
    """Ends a stage when it opens its images."""


@pytest.fixture
def photo() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (80, 120, 3), dtype=np.uint8))


@pytest.fixture
def weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Newly drawn weights stand for published ones."""
    real = timm.create_model
    monkeypatch.setattr("everycause.networks.timm.create_model", lambda name, pretrained=False, **o: real(name, **o))


@pytest.mark.parametrize("mode", ["center", "squash", "border"])
@pytest.mark.parametrize(("interpolation", "crop"), [("bilinear", 0.875), ("bicubic", 0.95), ("bicubic", 1.0)])
def test_a_photograph_becomes_the_square_that_timm_makes(
    photo: Image.Image, interpolation: str, crop: float, mode: str
) -> None:
    theirs = timm.data.create_transform(
        (3, 64, 64), interpolation=interpolation, crop_pct=crop, crop_mode=mode, normalize=False
    )
    assert torch.equal(squared(photo, 64, framing=Framing(interpolation, crop, mode)), theirs(photo))


def test_without_a_framing_or_with_a_size_of_its_own_the_data_source_decides(photo: Image.Image) -> None:
    bicubic, bilinear = squared(photo, 64), squared(photo, 64, 73, FRAMING)
    assert torch.equal(bicubic, squared(photo, 64, framing=Framing("bicubic", 1.0, "center")))
    assert torch.equal(bilinear, squared(photo, 64, framing=FRAMING))  # 64 / 0.875 = 73
    assert not torch.equal(squared(photo, 64, 64, FRAMING), bilinear)
    small = Image.fromarray(np.zeros((64, 64, 3), dtype=np.uint8) + 7)
    assert squared(small, 64, None, FRAMING).unique().tolist() == [7]


def test_a_network_keeps_its_framing_with_its_weights(weights: None, tmp_path: Path) -> None:
    assert framing_of(PRETRAINED) == own_framing(PRETRAINED.name) == FRAMING and framing_of(MODEL) is None
    data = digits_data(tmp_path)
    train = open_split(data.seen_by(FRAMING), "train", 1)
    classifier, _ = train_base.train_base(
        PRETRAINED, read("training", path=params_file(tmp_path)).training, train, train, 0, CPU
    )
    classifier.save(tmp_path)
    found = load(tmp_path)
    assert found.framing == FRAMING and found.statistics == own_statistics(PRETRAINED.name)
    Classifier(MODEL, ("a", "b"), 32, STATISTICS).save(tmp_path)
    assert load(tmp_path).framing is None and b"framing" not in (tmp_path / FILE).read_bytes()


def test_weights_from_elsewhere_see_photographs_as_timm_says(weights: None, tmp_path: Path) -> None:
    names = tuple(map(str, range(1000)))
    assert open_classifier("timm:resnet18.tv_in1k", MODEL, names, 32, CPU).framing == FRAMING
    classifier = Classifier(MODEL.model_copy(update={"name": "resnet18.tv_in1k"}), ("a", "b"), 32, STATISTICS)
    torch.save(classifier.network.state_dict(), tmp_path / "weights.pth")
    assert open_classifier(str(tmp_path / "weights.pth"), classifier.params, ("a", "b"), 32, CPU).framing == FRAMING


def digits_data(folder: Path) -> DataParams:
    digits_tree(folder / "digits", classes=2, per_class=4)
    for file in (folder / "digits").rglob("*.png"):
        Image.open(file).convert("RGB").resize((48, 40)).save(file)
    return DataParams(source="folder", root=str(folder / "digits"), memory_mib=10, folder={"image_size": 32})


def params_file(folder: Path, **model: object) -> Path:
    raw = yaml.safe_load((Path(__file__).parents[1] / "profiles" / "smoke.yaml").read_text())
    raw["data"] |= {"source": "folder", "root": str(folder / "digits"), "folder": {"image_size": 32}}
    raw["model"] |= model
    raw["rows"] = raw["evaluated"] = ["base"]
    raw |= {"rows": ["continued"], "evaluated": ["base"], "seeds": [7]}
    raw["faithfulness"]["rows"] = ["base"]
    raw["run"]["threads"] = 1
    raw["tuning"] |= {"row": "continued", "seeds": [0], "objectives": ["validation accuracy"]}
    raw["tuning"]["parameters"] = {"retraining.optimizer.learning_rate": raw_range()}
    (folder / "params.yaml").write_text(yaml.safe_dump(raw))
    return folder / "params.yaml"


def raw_range() -> dict:
    return {"low": 1e-4, "high": 1e-2, "log": True, "published": 1e-3}


def test_the_splits_of_a_source_are_framed_and_rendered_ones_are_not(tmp_path: Path, data_params: DataParams) -> None:
    photos = digits_data(tmp_path)
    plain, framed = (open_split(data, "train", 1) for data in (photos, photos.seen_by(FRAMING)))
    file = tmp_path / "digits" / "train" / "digit-0" / "0.png"
    assert torch.equal(framed.all()[0], squared(Image.open(file), 32, framing=FRAMING))
    assert not torch.equal(framed.all(), plain.all()) and framed.identity != plain.identity
    assert photos.section.framing is None and photos.seen_by(None) is photos
    assert data_params.seen_by(FRAMING) is data_params
    assert FolderParams(image_size=32).framed(FRAMING).described() != FolderParams(image_size=32).described()


def test_parts_of_birds_stay_on_their_birds_however_photographs_are_framed(tmp_path: Path) -> None:
    cub_tree(tmp_path, classes=2, per_class=6)
    birds, params = Cub.open(tmp_path), CubParams(image_size=32, crop="whole", validation_share=0.2, seed=0)
    for framing in (None, FRAMING, Framing("bicubic", 1.0, "squash"), Framing("bicubic", 1.0, "border")):
        for index in (0, 1):
            x, y, visible = birds.parts_in_image(index, params.framed(framing))[0]
            red = birds.decode(index, params.framed(framing))[:, int(y), int(x)]
            assert visible == 1 and int(red[0]) > 150 > int(red[1]), framing


def test_imagenet_is_resized_as_the_network_wants_where_params_say_null() -> None:
    raw = yaml.safe_load((Path(__file__).parents[1] / "profiles" / "imagenet-resnet50.yaml").read_text())
    assert ImageNetParams(**raw["data"]["imagenet"]).resize is None


STAGES: dict[str, Callable[[Path], None]] = {
    "train_base": lambda out: train_base.main(seed=0, out=out),
    "accumulate_filters": lambda out: accumulate_filters.main(seed=0, base=Path("base"), out=out),
    "generate_masks": lambda out: generate_masks.main(seed=0, base=Path("base"), out=out),
    "retrain": lambda out: retrain.main(
        row="continued", seed=0, base=Path("base"), filters=Path("none"), masks=Path("none"), out=out
    ),
    "measure_faithfulness": lambda out: measure_faithfulness.main(
        row="base", seed=0, model=Path("base"), filters=Path("none"), masks=Path("none"), out=out
    ),
    "evaluate_ood": lambda out: evaluate_ood.main(row="continued", seed=0, model="base", out=out),
    "detect_misclassifications": lambda out: detect_misclassifications.main(
        seed=0, base=Path("base"), filters=Path("none"), out=out
    ),
}


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_shows_a_network_photographs_in_its_own_framing(
    stage: str, weights: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    digits_data(tmp_path)
    params_file(tmp_path, **PRETRAINED.model_dump())
    (tmp_path / "base").mkdir()
    names = ("digit-0", "digit-1")
    Classifier(PRETRAINED, names, 32, STATISTICS, FRAMING).save(tmp_path / "base")

    def opened(data: DataParams, *_others: object) -> None:
        raise Opened(data.section.framing)

    module = globals()[stage]
    for opener in ("open_split", "views"):
        monkeypatch.setattr(module, opener, opened, raising=False)
    monkeypatch.setattr("everycause.explanation.filters.FilterBank.load", lambda *_: None)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    with pytest.raises(Opened) as found:
        STAGES[stage](tmp_path / "out")
    assert found.value.args == (FRAMING,)


def test_trials_of_a_sweep_see_photographs_as_their_network_was_trained(
    weights: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = digits_data(tmp_path)
    params_file(tmp_path, **PRETRAINED.model_dump())
    monkeypatch.chdir(tmp_path)
    params = read("seeds", "run", "tracking", "data", "tuning", *TrialParams.model_fields)
    sweep = prepared(params, params.tuning.plan(""), tmp_path / "artifacts", tmp_path / "kept", 1, CPU)
    identities = {framing: open_split(data.seen_by(framing), "train", 1).identity for framing in (None, FRAMING)}
    assert sweep.cache.train.identity == identities[FRAMING]
    assert sweep.seen_by(None)[0].train.identity == identities[None]


def test_explaining_a_photograph_frames_it_too(photo: Image.Image) -> None:
    classifier = Classifier(MODEL, ("a", "b"), 32, STATISTICS, FRAMING)
    assert torch.equal(preprocessing_of(classifier, None, None, None)(photo), squared(photo, 32, framing=FRAMING))


@pytest.mark.parametrize("stage", [name for name in STAGES if name != "train_base"])
@pytest.mark.parametrize(
    ("names", "size", "said"),
    [
        (("digit-0", "digit-1", "digit-2"), 32, "knows 3 classes, and they are not the 2 of"),
        (("digit-0", "dog"), 32, "they are not the 2 of"),
        (("digit-0", "digit-1"), 64, "made for images of 64 pixels, and those of"),
    ],
)
def test_every_stage_refuses_a_model_of_other_classes_or_another_size(
    stage: str, names: tuple[str, ...], size: int, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    digits_data(tmp_path)
    params_file(tmp_path)
    (tmp_path / "base").mkdir()
    Classifier(MODEL, names, size, STATISTICS).save(tmp_path / "base")
    monkeypatch.setattr("everycause.explanation.filters.FilterBank.load", lambda *_: None)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    with pytest.raises(UserError, match=said):
        STAGES[stage](tmp_path / "out")
    assert not (tmp_path / "out").exists()
