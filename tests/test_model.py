from pathlib import Path

import pytest
import timm
import torch
from huggingface_hub.constants import is_offline_mode
from safetensors import SafetensorError
from safetensors.torch import save_file

from everycause.artifacts import save_tensors
from everycause.data.images import Statistics
from everycause.data.split import Split, statistics
from everycause.errors import UserError
from everycause.inference import check_fits, logits_of, open_classifier, readout_of
from everycause.models import (
    FILE,
    Classifier,
    ModelParams,
    framing_of,
    load,
    model_fingerprint,
    new_classifier,
)
from everycause.networks import evaluating, folded, last_layers, own_statistics, recording
from tests.conftest import MODEL, STATISTICS, make_classifier


def images(count: int = 3, size: int = 32) -> torch.Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(0))


def with_params(**changes: object) -> Classifier:
    return Classifier(MODEL.model_copy(update=changes), ("a", "b"), 32, STATISTICS)


def test_a_saved_classifier_loads_with_the_same_logits_and_bytes(tmp_path: Path, classifier: Classifier) -> None:
    classifier.save(tmp_path)
    loaded = load(tmp_path)
    assert torch.equal(loaded(images()), classifier(images()))
    assert (loaded.class_names, loaded.statistics, loaded.params) == (
        classifier.class_names,
        classifier.statistics,
        classifier.params,
    )
    before = model_fingerprint(tmp_path)
    loaded.save(tmp_path)
    assert model_fingerprint(tmp_path) == before


@pytest.mark.parametrize(
    ("name", "layer"),
    [("resnet10t", "layer4"), ("test_convnext", "stages"), ("test_efficientnet", "conv_head"), ("vgg11", "features")],
)
def test_other_architectures_work(name: str, layer: str) -> None:
    classifier = with_params(name=name, explained_layer=layer).eval()
    seen = classifier.readout(images(2))
    assert seen.logits.shape == (2, 2) and seen.activations.ndim == 2


def test_a_vit_of_a_fixed_size_is_built_for_the_image_size() -> None:
    classifier = with_params(name="test_vit", explained_layer="blocks").eval()
    assert classifier(images(2)).shape == (2, 2)
    with pytest.raises(ValueError, match="linear in the averaged channels of 'blocks'.*set model.head to linear"):
        classifier.head()


@pytest.mark.parametrize(
    ("name", "layer", "head", "are"),
    [
        ("resnet10t", "layer4", "published", "averaged over 2 × 2 places"),
        ("vgg11", "maps", "linear", "averaged over 2 × 2 places"),
        ("test_convnext", "maps", "linear", "averaged over 2 × 2 places"),
        ("test_convnext", "head.norm", "published", "no place in the image"),
        ("test_vit", "maps", "linear", "mean patch token"),
        ("test_vit3", "fc_norm", "published", "no place in the image"),
    ],
)
def test_filters_of_every_kind_of_network_are_read_and_named(
    name: str, layer: str, head: str, are: str, tmp_path: Path
) -> None:
    classifier = Classifier(
        ModelParams(
            name=name,
            pretrained=False,
            weights="cache",
            explained_layer=layer,
            head=head,
            dropout=0.5,
        ),
        ("a", "b", "c"),
        64,
        STATISTICS,
    ).eval()
    weight, bias = classifier.head()
    seen = classifier.readout(images(2, 64))
    assert (
        torch.allclose(seen.activations @ weight.T + bias, seen.logits, atol=1e-3) and are in classifier.filters_are()
    )
    classifier.save(tmp_path)
    assert torch.allclose(load(tmp_path)(images(2, 64)), classifier(images(2, 64)), atol=1e-4)


def test_the_cut_of_a_vgg_is_the_papers() -> None:
    params = ModelParams(
        name="vgg16", pretrained=False, weights="cache", explained_layer="maps", head="linear", dropout=0.5
    )
    classifier = Classifier(params, tuple(map(str, range(200))), 224, STATISTICS)
    assert classifier.places() == (7, 7) and classifier.network.dropout.p == 0.5
    weights = {name: value.shape for name, value in classifier.network.named_parameters()}
    assert weights["fc.weight"] == (200, 512) and len(weights) == 2 * 13 + 2 and "trunk.features.28.weight" in weights


def test_a_layer_that_gives_neither_maps_nor_tokens_nor_a_vector_is_refused() -> None:
    with pytest.raises(ValueError, match="neither feature maps nor a square"):
        with_params(name="test_vit", explained_layer="blocks.0.attn.q_norm").as_maps(torch.zeros(1, 2, 3, 4, 5))


def test_the_head_is_linear_in_the_pooled_activations(classifier: Classifier) -> None:
    weight, bias = classifier.head()
    seen = classifier.readout(images())
    assert torch.allclose(seen.activations @ weight.T + bias, seen.logits, atol=1e-4)


def test_a_layer_from_which_the_logits_are_not_linear_is_refused() -> None:
    with pytest.raises(ValueError, match="linear in the averaged channels of 'layer3'"):
        with_params(explained_layer="layer3").head()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "test_resnett"}, "did you mean test_resnet"),
        ({"name": "zzzzqqqq"}, "is not a timm model"),
        ({"name": "test_resnet.a1_in1k"}, r"has a tag that timm does not know \(known: test_resnet.r160_in1k\)"),
        ({"name": "test_resnet.", "pretrained": True}, "has a tag that timm does not know"),
        ({"name": "coatnet_0_224.none"}, "'coatnet_0_224.none' has a tag that timm does not know"),
        ({"name": "coatnet_nano_cc_224", "pretrained": True}, "no weights were published for coatnet_nano_cc_224"),
        ({"name": "vgg11"}, r"vgg11 cannot take images of 8 pixels \(.*it was made for 224"),
        ({"explained_layer": "layer9"}, "'layer9' does not exist in test_resnet: its top-level layers are conv1"),
    ],
)
def test_wrong_names_are_one_sentence(changes: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Classifier(MODEL.model_copy(update=changes), ("a", "b"), 8, STATISTICS)


@pytest.mark.parametrize("name", ["test_resnet.a1_in1k", "test_resnett"])
def test_a_wrong_name_of_a_pretrained_network_is_one_sentence_wherever_it_is_looked_up(name: str, train: Split) -> None:
    params = MODEL.model_copy(update={"name": name, "pretrained": True})
    for call in (lambda: new_classifier(params, train), lambda: framing_of(params)):
        with pytest.raises(UserError, match=f"model.name '{name}'"):
            call()
    with pytest.raises(UserError, match=f"model.name '{name}'"):
        open_classifier(f"timm:{name}", MODEL, ("a", "b"), 32, torch.device("cpu"))


@pytest.mark.parametrize("error", [RuntimeError("size mismatch"), SafetensorError("header too small"), EOFError()])
def test_damaged_pretrained_weights_are_one_sentence(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def create(*_names: str, **_options: object) -> None:
        raise error

    monkeypatch.setattr("everycause.networks.timm.create_model", create)
    with pytest.raises(UserError, match="the pretrained weights of resnet18 cannot be loaded .* fetch them"):
        with_params(name="resnet18", pretrained=True)


def test_pretrained_weights_that_are_not_finite_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    networks_with_weights(monkeypatch)
    real = timm.create_model

    def broken(name: str, **options: object) -> torch.nn.Module:
        network = real(name, **options)
        network.fc.bias.data[0] = torch.nan
        return network

    monkeypatch.setattr("everycause.networks.timm.create_model", broken)
    with pytest.raises(UserError, match=r"pretrained weights of resnet18 are not finite \('fc.bias'\)"):
        with_params(name="resnet18", pretrained=True)


def test_weights_that_are_published_outside_the_hub_are_not_downloaded_either(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torch.hub.download_url_to_file", lambda *_a, **_o: pytest.fail("timm downloads"))
    with pytest.raises(UserError, match="pretrained weights of gcvit_xxtiny are not in the local cache"):
        with_params(name="gcvit_xxtiny", pretrained=True)


def test_pretrained_weights_that_are_not_there_are_one_sentence(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ValueError, match="pretrained weights of test_resnet are not in the local"):
        with_params(pretrained=True)


def test_a_missing_model_names_the_stage_to_run(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="run the stage train_base first"):
        load(tmp_path / "models" / "base" / "seed-0")


def test_no_hook_is_left_behind_even_after_an_exception(classifier: Classifier) -> None:
    classifier.readout(images())
    with pytest.raises(RuntimeError), recording(classifier.explained_layer):
        raise RuntimeError
    assert not any(module._forward_hooks for module in classifier.modules())


def test_modes_are_restored_module_by_module_even_after_an_exception(classifier: Classifier) -> None:
    classifier.train()
    classifier.network.bn1.eval()
    before = [module.training for module in classifier.modules()]
    with pytest.raises(RuntimeError), evaluating(classifier):
        assert not any(module.training for module in classifier.modules())
        raise RuntimeError
    assert [module.training for module in classifier.modules()] == before


def test_model_params_refuse_unknown_keys() -> None:
    with pytest.raises(ValueError, match="Extra inputs"):
        ModelParams(**MODEL.model_dump(), depth=3)


def test_classifiers_with_one_seed_are_equal() -> None:
    assert torch.equal(make_classifier(3)(images()), make_classifier(3)(images()))


def saved_description(classifier: Classifier) -> dict:
    return {
        "params": classifier.params.model_dump(),
        "class_names": list(classifier.class_names),
        "image_size": classifier.image_size,
        "mean": list(classifier.statistics.mean),
        "standard_deviation": list(classifier.statistics.standard_deviation),
    }


WRONG = {
    "image_size": [None, "64", -3, 1.5],
    "mean": [[0.5, 0.5], [0.5, 0.5, float("nan")], "mean"],
    "standard_deviation": [[0.5, 0.5, 0.0]],
    "class_names": [[], 4, [1, 2, 3, 4]],
    "params": [{}, None, {"name": "test_resnet", "depth": 3}],
    "framing": [["bilinear"], 3],
    "surprise": [1],
}


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in WRONG.items() for value in values])
def test_a_description_with_a_wrong_value_is_one_sentence(
    tmp_path: Path, classifier: Classifier, key: str, value: object
) -> None:
    save_tensors(tmp_path / FILE, classifier.network.state_dict(), {**saved_description(classifier), key: value})
    with pytest.raises(UserError, match=f"does not describe a classifier of this project \\('{key}"):
        load(tmp_path)


def test_a_description_that_is_no_mapping_is_one_sentence(tmp_path: Path, classifier: Classifier) -> None:
    weights = {name: value.contiguous() for name, value in classifier.network.state_dict().items()}
    save_file(weights, tmp_path / FILE, {"description": "[]"})
    with pytest.raises(UserError, match="is not a readable artifact .its description is no mapping"):
        load(tmp_path)


@pytest.mark.parametrize("damage", ("missing", "extra", "shape", "nan", "undescribed"))
def test_a_file_that_holds_no_classifier_is_one_sentence(tmp_path: Path, classifier: Classifier, damage: str) -> None:
    weights, description = dict(classifier.network.state_dict()), saved_description(classifier)
    first = next(name for name, value in weights.items() if value.ndim > 1)
    match damage:
        case "missing":
            del weights[first]
        case "extra":
            weights["surprise"] = torch.ones(1)
        case "shape":
            weights[first] = weights[first][:, :1, :1]
        case "nan":
            weights[first] = torch.full_like(weights[first], torch.nan)
        case "undescribed":
            del description["image_size"]
    save_tensors(tmp_path / FILE, weights, description)
    said = {"nan": "weights that are not finite", "undescribed": "does not describe a classifier"}
    with pytest.raises(UserError, match=said.get(damage, "does not hold the weights of test_resnet")):
        load(tmp_path)


def networks_with_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let timm believe that its published weights are at hand: newly drawn ones stand for them."""
    real = timm.create_model

    def create(name: str, pretrained: bool = False, **options: object) -> torch.nn.Module:
        return real(name, **options)

    monkeypatch.setattr("everycause.networks.timm.create_model", create)


def test_a_pretrained_network_sees_the_statistics_it_was_trained_with(
    monkeypatch: pytest.MonkeyPatch, train: Split
) -> None:
    networks_with_weights(monkeypatch)
    pretrained = new_classifier(MODEL.model_copy(update={"name": "resnet18", "pretrained": True}), train)
    assert (
        pretrained.statistics == own_statistics("resnet18") == Statistics((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    )
    assert new_classifier(MODEL, train).statistics == statistics(train)


@pytest.mark.parametrize(
    ("name", "layer", "head", "size"),
    [
        ("resnet18", "layer4", "published", 32),
        ("vgg11", "maps", "linear", 32),
        ("tf_efficientnet_lite0", "conv_head", "published", 32),
        ("deit_tiny_distilled_patch16_224", "norm", "published", 32),  # two last layers
        ("levit_128s", "stages", "published", 64),  # two, each behind a normalization
        ("crossvit_tiny_240", "norm", "published", 240),  # one for each branch
        ("resnetv2_50x1_bit", "norm", "published", 32),  # a convolution
    ],
)
def test_the_new_last_layers_of_a_pretrained_network_start_at_zero(
    monkeypatch: pytest.MonkeyPatch, name: str, layer: str, head: str, size: int
) -> None:
    networks_with_weights(monkeypatch)
    params = ModelParams(
        name=name,
        pretrained=True,
        weights="cache",
        explained_layer=layer,
        head=head,
        dropout=0.0,
    )
    classifier = Classifier(params, ("a", "b", "c"), size, STATISTICS).eval()
    assert not classifier(images(2, size)).any()
    if size == 32:
        drawn = Classifier(params.model_copy(update={"pretrained": False}), ("a", "b", "c"), size, STATISTICS)
        assert drawn.eval()(images(2, size)).any()


def test_the_gradient_of_a_last_layer_at_zero_is_not_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    networks_with_weights(monkeypatch)
    params = MODEL.model_copy(update={"name": "levit_128s", "explained_layer": "stages", "pretrained": True})
    classifier = Classifier(params, ("a", "b", "c"), 64, STATISTICS).train()
    torch.nn.functional.cross_entropy(classifier(images(3, 64)), torch.tensor([0, 1, 2])).backward()
    assert all(any(value.grad.any() for value in one.parameters()) for one in last_layers(classifier.network))


def test_published_last_layers_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    networks_with_weights(monkeypatch)
    params = MODEL.model_copy(update={"name": "resnet18", "pretrained": True})
    assert Classifier(params, tuple(map(str, range(1000))), 32, STATISTICS).network.get_classifier().weight.any()


def test_the_hub_is_not_asked_for_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    offline = []
    monkeypatch.setattr(
        "everycause.networks.timm.create_model", lambda *_a, **_o: offline.append(is_offline_mode()) or 1 / 0
    )
    with pytest.raises(ZeroDivisionError):
        with_params(name="resnet18", pretrained=True)
    assert offline == [True] and not is_offline_mode()


def test_a_network_with_the_channels_last_gives_maps_with_the_channels_first() -> None:
    classifier = with_params(name="swin_tiny_patch4_window7_224", explained_layer="norm").eval()
    seen = classifier.layer_output(images(2))
    assert seen.output.shape == (2, 1, 1, 768)  # 32 pixels leave one place
    assert classifier.as_maps(seen.output).shape == (2, 768, 1, 1)
    weight, bias = classifier.head()
    assert torch.allclose(classifier.readout(images(2)).activations @ weight.T + bias, seen.logits, atol=1e-3)


class OverwrittenBehind(torch.nn.Module):
    """A layer whose output an in-place activation changes afterwards."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.behind = torch.nn.Linear(4, 4), torch.nn.ReLU(inplace=True)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return self.behind(self.layer(values))


def test_an_activation_in_place_does_not_change_what_was_recorded() -> None:
    network, values = OverwrittenBehind(), torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
    with recording(network.layer) as outputs:
        network(values)
    assert torch.equal(outputs[0], network.layer(values)) and (outputs[0] < 0).any()


class AddedBehind(torch.nn.Module):
    """A layer that gives what it got, while another name for it is changed in place afterwards."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Identity()

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        shortcut = values * 1.0
        changed = self.layer(shortcut) * 2
        shortcut += 1
        return changed + shortcut


def test_a_change_in_place_of_what_a_layer_got_does_not_change_what_was_recorded() -> None:
    values = torch.zeros(2, 3, requires_grad=True)
    with recording((network := AddedBehind()).layer) as outputs:
        result = network(values)
    assert torch.equal(outputs[0], torch.zeros(2, 3))
    (gradient,) = torch.autograd.grad(result.sum(), outputs)
    assert torch.equal(gradient, torch.full((2, 3), 2.0))  # the logits depend on what was recorded


def test_a_layer_that_gives_no_tensor_is_one_sentence() -> None:
    network = torch.nn.LSTM(3, 3)
    with pytest.raises(UserError, match="gives a tuple, not a tensor"), recording(network):
        network(torch.zeros(1, 1, 3))


def test_folded_copies_give_the_same_logits_and_leave_the_network_alone(classifier: Classifier) -> None:
    before = {name: value.clone() for name, value in classifier.network.state_dict().items()}
    copied = folded(classifier.network)
    assert torch.allclose(copied(images()), classifier(images()), atol=1e-4)
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in copied.modules())
    assert all(torch.equal(value, before[name]) for name, value in classifier.network.state_dict().items())


def split_of(names: tuple[str, ...], size: int) -> Split:
    read = lambda index: torch.zeros(len(index), 3, size, size, dtype=torch.uint8)  # noqa: E731
    return Split("test", torch.tensor([0, 1]), names, size, read, "identity")


def test_images_that_a_model_was_not_made_for_are_refused(classifier: Classifier) -> None:
    check_fits(classifier, split_of(classifier.class_names, 32))
    with pytest.raises(UserError, match="made for images of 32 pixels, and those of 'test' have 64"):
        logits_of(classifier, split_of(classifier.class_names, 64))
    with pytest.raises(UserError, match="knows 4 classes, and they are not the 2 of 'test', such as 'dog'"):
        readout_of(classifier, split_of(("class-0", "dog"), 32))


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "mobilenetv3_small_050", "test_resnet"])
def test_every_normalization_behind_a_convolution_is_folded_also_those_of_timms_own_kinds(name: str) -> None:
    torch.manual_seed(0)
    network = timm.create_model(name).eval()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):  # as after training: every statistic and weight counts
            module.running_mean.normal_(0, 0.2), module.running_var.uniform_(0.5, 2.0)
            torch.nn.init.uniform_(module.weight, 0.5, 1.5), torch.nn.init.normal_(module.bias, 0, 0.2)
    images = torch.randn(2, 3, 64, 64)
    copied = folded(network)
    assert sum(isinstance(module, torch.nn.BatchNorm2d) for module in copied.modules()) == 0
    with torch.no_grad():
        expected = network(images)
        assert expected.abs().max() > 1e-3 and torch.allclose(copied(images), expected, rtol=1e-3, atol=1e-4)


def test_a_convolution_that_standardizes_its_weights_is_not_folded() -> None:
    torch.manual_seed(0)
    network = torch.nn.Sequential(timm.layers.StdConv2d(3, 4, 3), torch.nn.BatchNorm2d(4)).eval()
    torch.nn.init.uniform_(network[1].weight, 2.0, 3.0)
    images = torch.randn(2, 3, 8, 8)
    assert torch.allclose(folded(network)(images), network(images), atol=1e-5)


def test_an_output_that_is_used_twice_is_not_folded() -> None:
    class Twice(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.convolution, self.normalization = torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            maps = self.convolution(images)
            return maps + self.normalization(maps)

    torch.manual_seed(0)
    network = Twice().eval()
    torch.nn.init.uniform_(network.normalization.weight, 2.0, 3.0)
    images = torch.randn(2, 3, 8, 8)
    assert torch.allclose(folded(network)(images), network(images), atol=1e-5)
