from pathlib import Path

import pytest
import torch

from everycause.artifacts import atomic_folder, load_tensors, save_tensors
from everycause.hooks import evaluating, recording
from everycause.models import Classifier, ModelParams, load, model_fingerprint, recorded
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
        ModelParams(name=name, pretrained=False, explained_layer=layer, head=head, dropout=0.5),
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
    params = ModelParams(name="vgg16", pretrained=False, explained_layer="maps", head="linear", dropout=0.5)
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
        ({"explained_layer": "layer9"}, "'layer9' does not exist in test_resnet: its top-level layers are conv1"),
    ],
)
def test_wrong_names_are_one_sentence(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        with_params(**changes)


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


def test_an_artifact_is_whole_or_absent(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"
    with pytest.raises(RuntimeError), atomic_folder(out) as folder:
        (folder / "file").write_text("half")
        raise RuntimeError
    assert list(out.parent.iterdir()) == []
    for text in ("one", "two"):
        with atomic_folder(out) as folder:
            (folder / "file").write_text(text)
    assert (out / "file").read_text() == "two" and list(out.parent.iterdir()) == [out]


def test_a_damaged_artifact_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"garbage")
    with pytest.raises(ValueError, match="not a readable artifact"):
        load(tmp_path)
    save_tensors(tmp_path / "a", {"x": torch.ones(2).expand(3, 2)}, {"k": 1})
    assert torch.equal(load_tensors(tmp_path / "a", "nothing")[0]["x"], torch.ones(3, 2))


def test_model_params_refuse_unknown_keys() -> None:
    with pytest.raises(ValueError, match="Extra inputs"):
        ModelParams(**MODEL.model_dump(), depth=3)


def test_classifiers_with_one_seed_are_equal() -> None:
    assert torch.equal(make_classifier(3)(images()), make_classifier(3)(images()))
