"""Classifiers from anywhere: ours, a state dict, timm's."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from everycause.errors import UserError
from everycause.inference import open_classifier
from everycause.models import Classifier
from tests.conftest import MODEL, make_classifier

CPU = torch.device("cpu")
NAMES = tuple(f"class-{i}" for i in range(4))


def images() -> torch.Tensor:
    return torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def test_one_of_ours_is_loaded_from_its_folder(tmp_path: Path, classifier: Classifier) -> None:
    classifier.save(tmp_path)
    assert torch.equal(open_classifier(str(tmp_path), MODEL, NAMES, 32, CPU)(images()), classifier(images()))


@pytest.mark.parametrize("wrapping", ["plain", "state_dict", "module", "safetensors"])
def test_a_state_dict_is_loaded_whatever_a_script_wrapped_it_in(
    tmp_path: Path, classifier: Classifier, wrapping: str
) -> None:
    state = classifier.network.state_dict()
    path = tmp_path / ("weights.safetensors" if wrapping == "safetensors" else "weights.pth")
    match wrapping:
        case "safetensors":
            save_file({name: value.contiguous() for name, value in state.items()}, path)
        case "state_dict":
            torch.save({"epoch": 3, "state_dict": state}, path)
        case "module":
            torch.save({f"module.{name}": value for name, value in state.items()}, path)
        case "plain":
            torch.save(state, path)
    found = open_classifier(str(path), MODEL, NAMES, 32, CPU)
    assert (
        torch.allclose(found(images()), classifier(images()), atol=1e-5)
        and not found.training
        and found.class_names == NAMES
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("text", "cannot be read as weights"),
        ("list", "holds no state dict"),
        ("other", "is no state dict of test_resnet with 4 classes"),
        (None, "does not exist"),
    ],
)
def test_what_is_no_checkpoint_is_one_sentence(tmp_path: Path, content: str | None, message: str) -> None:
    path = tmp_path / "weights.pth"
    match content:
        case "text":
            path.write_text("hello")
        case "list":
            torch.save([1, 2], path)
        case "other":
            torch.save(make_classifier(classes=3).network.state_dict(), path)
    with pytest.raises(ValueError, match=message) as caught:
        open_classifier(str(path), MODEL, NAMES, 32, CPU)
    assert "\n" not in str(caught.value)


def test_published_weights_need_their_own_classes_and_a_local_cache(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="the published resnet18 has 1000 classes and the data 4"):
        open_classifier("timm:resnet18", MODEL, NAMES, 32, CPU)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ValueError, match="pretrained weights of resnet18 are not in the local"):
        open_classifier("timm:resnet18", MODEL, tuple(map(str, range(1000))), 32, CPU)
    with pytest.raises(ValueError, match="is not a timm model"):
        open_classifier("timm:resnet_eighteen", MODEL, NAMES, 32, CPU)


@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors"])
def test_a_state_dict_that_is_not_finite_is_one_sentence(tmp_path: Path, classifier: Classifier, name: str) -> None:
    state = {key: value.contiguous() for key, value in classifier.network.state_dict().items()}
    state["fc.bias"] = torch.full_like(state["fc.bias"], torch.inf)
    save_file(state, tmp_path / name) if name.endswith("safetensors") else torch.save(state, tmp_path / name)
    with pytest.raises(UserError, match=r"holds weights that are not finite \('fc.bias'\)"):
        open_classifier(str(tmp_path / name), MODEL, NAMES, 32, CPU)
