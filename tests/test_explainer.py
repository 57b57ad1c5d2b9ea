import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torchvision
from PIL import Image
from torch import nn

import everycause
from everycause.__main__ import main
from everycause.data.split import Split
from everycause.errors import UserError
from everycause.explainer import Explainer, explain
from everycause.explanation.inputs import rgb_picture
from everycause.explanation.masks import searched
from everycause.models import Classifier
from tests.conftest import ROOT
from tests.explanation.searching import PARAMS, always_right, undecided

SIZE = 32
STATISTICS = {"mean": (0.5, 0.5, 0.5), "standard_deviation": (0.25, 0.25, 0.25)}


class Colors(nn.Module):
    """Classes by the mean of each channel: bright red wins by its red pixels alone."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(4.0))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.scale * images.mean(dim=(2, 3))


def two_colors() -> np.ndarray:
    """Blue, and red in the upper left quarter by so much that red wins."""
    pixels = np.zeros((SIZE, SIZE, 3), dtype=np.uint8)
    pixels[:, :, 2] = 60
    pixels[:16, :16, 0] = 255
    return pixels


OPTIONS = {**STATISTICS, "image_size": SIZE, "regions": 16, "baseline": "zeros"}


@pytest.fixture
def classifier(train: Split) -> Classifier:
    return undecided(train)


def test_the_regions_are_those_that_the_prediction_rests_on() -> None:
    found = explain(Colors(), two_colors(), class_names=("red", "green", "blue"), **OPTIONS)
    assert found.label == 0 and found.flipped and found.name_of(0) == "red"
    assert set(found.order) <= {0, 1, 4, 5} and not found.regions[16:].any() and found.regions[:16, :16].any()
    assert found.probabilities.shape == (len(found.order) + 1, 3) and found.forwards > 0
    assert found.probabilities[0].argmax() == 0 and found.probabilities[-1].argmax() == 2
    assert all(found.probabilities[step].argmax() == 0 for step in range(len(found.order)))
    assert np.array_equal(found.image, two_colors().transpose(2, 0, 1))
    assert set(found.partition[found.regions]) == set(found.order)


@pytest.mark.parametrize("search", ("fast", "exhaustive", "greedy"))
@pytest.mark.parametrize("objective", ("deletion", "counterfactual", "factual"))
def test_every_search_and_objective_gives_flips_of_the_network_itself(search: str, objective: str) -> None:
    model = Colors()
    found = explain(model, two_colors(), search=search, objective=objective, **OPTIONS)
    pixels = torch.from_numpy(found.image).float() * ~torch.from_numpy(found.regions) / 255
    assert found.flipped and int(model((pixels[None] - 0.5) / 0.25).argmax()) != found.label


def test_one_of_our_classifiers_is_explained_as_the_stage_searches(classifier: Classifier, train: Split) -> None:
    split = always_right(train, classifier, 6)
    explainer = Explainer(classifier, regions=16, max_regions=4, batch_size=32)
    (fast,) = searched(classifier, split, torch.arange(6), PARAMS)
    (exhaustive,) = searched(classifier, split, torch.arange(6), PARAMS.model_copy(update={"search": "exhaustive"}))
    assert bool(fast.flipped.any()) and not bool(fast.flipped.all())
    for number in range(6):
        found = explainer(split.read(np.array([number]))[0])
        masks = fast if bool(fast.flipped[number]) else exhaustive  # where the fast search finds nothing
        assert found.order == [region for region in masks.order[number].tolist() if region >= 0]
        assert found.flipped == bool(masks.flipped[number]) and found.label == int(split.labels[number])
        assert found.class_names == classifier.class_names
    with pytest.raises(UserError, match="already misclassified"):
        explainer(split.read(np.array([0]))[0], label=(int(split.labels[0]) + 1) % 4)


def same_image_in_every_form(folder: Path) -> dict[str, object]:
    pixels = two_colors()
    Image.fromarray(pixels).save(folder / "image.png")
    rotated = Image.fromarray(np.rot90(pixels).copy())
    rotated.getexif()[0x0112] = 6  # shown rotated by 90 degrees clockwise
    opaque = np.concatenate([pixels, np.full((SIZE, SIZE, 1), 200, np.uint8)], axis=2)
    return {
        "PIL": Image.fromarray(pixels),
        "PIL RGBA": Image.fromarray(opaque),
        "PIL rotated": rotated,
        "path": folder / "image.png",
        "text": str(folder / "image.png"),
        "array": pixels,
        "array first": pixels.transpose(2, 0, 1),
        "array RGBA": opaque,
        "array float": pixels / 255,
        "array int64": pixels.astype(np.int64),
        "tensor": torch.from_numpy(pixels.transpose(2, 0, 1).copy()),
        "tensor last": torch.from_numpy(pixels),
        "tensor float": torch.from_numpy(pixels.transpose(2, 0, 1) / 255).float(),
        "tensor with gradient": torch.from_numpy(pixels.transpose(2, 0, 1) / 255).requires_grad_(),
        "tensor float16": torch.from_numpy(pixels.transpose(2, 0, 1).copy()).to(torch.float16).div(255),
        "tensor bfloat16": torch.from_numpy(pixels.transpose(2, 0, 1) / 255).to(torch.bfloat16),
        "tensor float8": torch.from_numpy(pixels.transpose(2, 0, 1) / 255).to(torch.float8_e4m3fn),
        "tensor sparse": torch.from_numpy(pixels.transpose(2, 0, 1).copy()).to_sparse(),
        "array of 16 bits": pixels.astype(np.uint16) * 257,
        "tensor of 16 bits": torch.from_numpy(pixels.transpose(2, 0, 1).astype(np.int32) * 257),
        "batch of one": torch.from_numpy(pixels.transpose(2, 0, 1).copy())[None],
    }


def test_an_image_in_any_form_gives_the_same_explanation(tmp_path: Path) -> None:
    explainer = Explainer(Colors(), **OPTIONS)
    for form, image in same_image_in_every_form(tmp_path).items():
        assert np.array_equal(explainer(image).image, two_colors().transpose(2, 0, 1)), form


@pytest.mark.parametrize("mode", ("1", "L", "LA", "P", "CMYK", "YCbCr", "I;16", "I", "F"))
def test_pictures_of_every_mode_are_taken(mode: str) -> None:
    gray = np.tile(np.arange(0, 256, 8, dtype=np.uint8), (32, 1))
    values = {"I;16": gray.astype(np.uint16) * 257, "I": gray.astype(np.int32), "F": gray.astype(np.float32) / 255}
    picture = Image.fromarray(values[mode]) if mode in values else Image.fromarray(gray).convert(mode)
    assert picture.mode == mode
    seen = np.asarray(rgb_picture(picture)).astype(int)
    assert seen.shape == (32, 32, 3) and (mode == "1" or np.abs(seen - gray[:, :, None]).max() <= 2)


def test_one_channel_is_repeated() -> None:
    gray = np.tile(np.arange(0, 256, 8, dtype=np.uint8), (32, 1))
    for image in (gray, gray[None], gray[:, :, None], torch.from_numpy(gray)[None], gray / 255):
        assert np.array_equal(np.asarray(rgb_picture(image)), np.repeat(gray[:, :, None], 3, axis=2))


def damaged() -> Image.Image:
    """A picture whose file ends too early, which Pillow opens all the same."""
    stream = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(stream, "JPEG")
    return Image.open(io.BytesIO(stream.getvalue()[:900]))


def closed() -> Image.Image:
    picture = Image.new("RGB", (4, 4))
    picture.close()
    return picture


REFUSED = {
    "cannot be decoded .image file is truncated": damaged(),
    "cannot be decoded .[Oo]peration on closed image": closed(),
    "cannot be decoded .conversion from La": Image.new("La", (32, 32)),
    "values cannot be read .Cannot copy out of meta tensor": torch.zeros(3, 32, 32, device="meta"),
    "complex64 values": torch.zeros(3, 32, 32, dtype=torch.complex64),
    "aaa' cannot be read .File name too long": "a" * 300,
    "the image is a bytes": b"image",
    "a batch of 4 images": torch.zeros(4, 3, 32, 32),
    "the image has the shape 5 × 32 × 32": np.zeros((5, 32, 32), np.uint8),
    "the image has the shape 32:": np.zeros(32, np.uint8),
    "the image is empty": np.zeros((0, 32, 3), np.uint8),
    "from -2.1 to 2, and floats must lie in": np.full((32, 32, 3), [-2.1, 0.0, 2.0]),
    "from 0 to 255, and floats must lie in": np.full((32, 32, 3), [0.0, 1.0, 255.0]),
    "NaN": np.full((32, 32, 3), np.nan),
    "uint16 values from 4000 to 4000": np.full((32, 32), 4000, np.uint16),
    "uint16 values from 4095 to 4095": Image.fromarray(np.full((32, 32), 4095, np.uint16)),
    "int32 values from 70000 to 70000": Image.fromarray(np.full((32, 32), 70000, np.int32)),
    "the image has the shape 32 × 32 × 2": np.zeros((32, 32, 2), np.uint8),
    "int64 values from -1 to -1": torch.full((3, 32, 32), -1),
    "bool values": np.ones((32, 32), bool),
    "is missing": "nowhere.jpg",
    "a folder": ROOT,
    "no image|not an image": ROOT / "pyproject.toml",
    "the image is a list": [[1, 2]],
    "the image is a NoneType": None,
}


@pytest.mark.parametrize("sentence", REFUSED)
def test_what_is_no_image_is_refused_in_one_sentence(sentence: str) -> None:
    with pytest.raises(UserError, match=sentence) as caught:
        Explainer(Colors(), **OPTIONS)(REFUSED[sentence])
    assert "\n" not in str(caught.value)


class Returns(nn.Module):
    """A network that returns something else."""

    def __init__(self, change: object) -> None:
        super().__init__()
        self.colors, self.change = Colors(), change

    def forward(self, images: torch.Tensor) -> object:
        return self.change(self.colors(images))


NETWORKS = {
    "returns a tuple": lambda: Returns(lambda logits: (logits, logits)),
    "returns a dict": lambda: Returns(lambda logits: {"logits": logits}),
    "returns 2 × 3 × 1 × 1 values": lambda: Returns(lambda logits: logits[:, :, None, None]),
    "returns one value per image": lambda: Returns(lambda logits: logits[:, :1]),
    "returns 3 values .torch.float32. for one image": lambda: Returns(lambda logits: logits.squeeze()),
    "returns a ndarray": lambda: Returns(lambda logits: logits.numpy()),
    "take a batch .* and a network of three channels": lambda: nn.Conv2d(1, 2, 3),
    "the model is a type": lambda: Colors,
    "returns 1 × 3 values": lambda: Returns(lambda logits: logits[:1]),
    "returns 2 × 3 values .torch.int64.": lambda: Returns(lambda logits: logits.long()),
    "cannot take a batch of images of 3 × 32 × 32": lambda: nn.Sequential(nn.Flatten(), nn.Linear(5, 2)),
    "device 'meta'": lambda: Colors().to("meta"),
    "the model is a str": lambda: "resnet18",
    "does not say how its images are normalized: give mean and standard_deviation": Colors,
}


@pytest.mark.parametrize("sentence", NETWORKS)
def test_what_is_no_classifier_is_refused_before_any_image(sentence: str) -> None:
    options = {} if "normalized" in sentence else OPTIONS
    with pytest.raises(UserError, match=sentence) as caught:
        Explainer(NETWORKS[sentence](), **options)
    assert "\n" not in str(caught.value)


def test_logits_that_are_not_finite_are_refused() -> None:
    explainer = Explainer(Returns(lambda logits: logits * torch.nan), **OPTIONS)
    with pytest.raises(UserError, match="NaN or infinite logits"):
        explainer(two_colors())


WRONG_OPTIONS = {
    "a grid needs a square number, such as 9 or 16": {"regions": 10},
    "smaller than the region grid": {"regions": 1600},
    "regions is 0": {"regions": 0},
    "partition is 'squares': give one of grid, slico": {"partition": "squares"},
    "baseline is 'gray'": {"baseline": "gray"},
    "one image has no other images": {"baseline": "background"},
    "search is 'slow'": {"search": "slow"},
    "objective is 'insertion'": {"objective": "insertion"},
    "class_names holds 2 names and the network has 3 classes": {"class_names": ("a", "b")},
    "mean is .124.0, 117.0, 104.0.: give it in units of white": {"mean": (124, 117, 104)},
    "standard_deviation is .0.0": {"standard_deviation": (0, 0, 0)},
    "mean is 0.5: give three numbers": {"mean": 0.5},
    "belong together": {"mean": None},
    "image_size is -1": {"image_size": -1},
    "image_size is .32, 32.": {"image_size": (32, 32)},
    "image_size is 1000000": {"image_size": 10**6},
    "regions is 16.0: give a whole number": {"regions": 16.0},
    "max_regions is True": {"max_regions": True},
    "class_names is a str: give a list of names": {"class_names": "abc"},
    "class_names is a dict": {"class_names": {0: "a", 1: "b", 2: "c"}},
    "class_names is a int": {"class_names": 3},
    "the network lies on 'cpu' and device is 'cuda'": {"device": "cuda"},
    "which torch does not know": {"device": "gpu"},
}


@pytest.mark.parametrize("sentence", WRONG_OPTIONS)
def test_an_option_that_makes_no_sense_is_refused_by_name(sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        Explainer(Colors(), **(OPTIONS | WRONG_OPTIONS[sentence]))


@pytest.mark.parametrize("label", [0, np.int64(0), torch.tensor(0)])
def test_a_label_that_is_the_prediction_is_taken(label: object) -> None:
    assert Explainer(Colors(), **OPTIONS)(two_colors(), label=label).label == 0


@pytest.mark.parametrize("label", [2, np.uint8(2), torch.tensor(2)])
def test_an_image_that_is_misclassified_already_is_refused(label: object) -> None:
    with pytest.raises(UserError, match="already misclassified .'class 0' instead of 'class 2'."):
        Explainer(Colors(), **OPTIONS)(two_colors(), label=label)


@pytest.mark.parametrize("label", [7, -1, 0.0, False, "red", [0], np.array([0, 1]), torch.tensor([0, 0]), np.nan])
def test_a_label_that_is_no_class_is_refused(label: object) -> None:
    with pytest.raises(UserError, match="^label is .*: give the number of a class, 0 … 2$"):
        Explainer(Colors(), **OPTIONS)(two_colors(), label=label)


def test_whole_numbers_of_numpy_are_taken_as_options() -> None:
    options = OPTIONS | {"regions": np.int64(16), "image_size": np.int32(SIZE), "max_regions": np.int64(1)}
    assert len(explain(Colors(), two_colors(), **options).order) == 1


class Subtracts(Colors):
    """Changes its input in place."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return super().forward(images.sub_(0.1))


def test_a_network_that_changes_its_input_in_place_is_explained() -> None:
    assert explain(Subtracts(), two_colors(), **OPTIONS).order == explain(Colors(), two_colors(), **OPTIONS).order


def test_a_network_without_gradients_is_searched_exhaustively() -> None:
    model = Returns(lambda logits: logits.detach())
    found = explain(model, two_colors(), **OPTIONS)
    tried = explain(Colors(), two_colors(), search="exhaustive", **OPTIONS)
    assert found.flipped and found.order == tried.order and found.forwards == tried.forwards
    assert explain(Colors(), two_colors(), **OPTIONS).forwards < tried.forwards


@pytest.mark.parametrize("switched_off", [torch.no_grad, torch.inference_mode])
def test_gradients_that_are_switched_off_around_the_call_change_nothing(switched_off: type) -> None:
    expected = explain(Colors(), two_colors(), **OPTIONS)
    model = Colors()
    with switched_off():
        found = explain(model, two_colors(), **OPTIONS)
    assert found.order == expected.order and found.forwards == expected.forwards


@pytest.mark.parametrize("place", ["no/where/x.png", "x.unknown"])
def test_a_figure_that_cannot_be_saved_is_one_sentence(tmp_path: Path, place: str) -> None:
    found = explain(Colors(), two_colors(), **OPTIONS)
    with pytest.raises(UserError, match="the figure cannot be saved as '.*: name another file"):
        found.plot(tmp_path / place)


def test_a_timm_network_sees_photographs_as_its_configuration_says() -> None:
    torch.manual_seed(0)
    model = timm.create_model("test_resnet", num_classes=5)
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (200, 320, 3), dtype=np.uint8))
    explainer = Explainer(model, regions=16)
    config = timm.data.resolve_data_config({}, model=model)
    expected = timm.data.create_transform(**config)(photo)
    statistics, found = explainer.preprocessing.statistics, explainer(photo)
    scaled = (torch.from_numpy(found.image) / 255 - torch.tensor(statistics.mean)[:, None, None]) / torch.tensor(
        statistics.standard_deviation
    )[:, None, None]
    assert torch.allclose(scaled, expected, atol=1e-5)
    exact = Image.fromarray(found.image.transpose(1, 2, 0))
    assert np.array_equal(explainer(exact).image, found.image)  # an image of the network's size is taken as it is


@pytest.mark.parametrize("name", ("test_vit", "test_convnext", "test_efficientnet"))
def test_networks_of_other_families_are_explained(name: str) -> None:
    torch.manual_seed(0)
    found = explain(timm.create_model(name, num_classes=4), two_colors(), regions=16)
    assert found.probabilities.shape[1] == 4 and found.image.shape[1] == found.image.shape[2]


def test_a_torchvision_network_sees_224_pixels_out_of_256() -> None:
    torch.manual_seed(0)
    model = torchvision.models.squeezenet1_1(num_classes=3)
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 256, 3), dtype=np.uint8))
    found = explain(model, photo, regions=4, **STATISTICS)
    crop = np.asarray(photo)[38:262, 16:240].transpose(2, 0, 1)
    assert found.image.shape == (3, 224, 224) and np.array_equal(found.image, crop)


def test_without_a_known_size_a_square_image_is_taken_as_it_is_and_another_is_refused() -> None:
    explainer = Explainer(Colors(), regions=16, baseline="zeros", **STATISTICS)
    assert explainer(two_colors()).image.shape == (3, SIZE, SIZE)
    with pytest.raises(UserError, match="has 32 × 20 pixels, and the size that the network takes is not known"):
        explainer(two_colors()[:20])


def test_the_network_is_left_as_it_was_and_prepared_once(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = timm.create_model("test_resnet", num_classes=5).train()
    model.layer1.eval()
    model.conv1.requires_grad_(False)
    modes = [module.training for module in model.modules()]
    trained = [value.requires_grad for value in model.parameters()]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    explainer, copies = Explainer(model, regions=16), []
    monkeypatch.setattr("everycause.explanation.scoring.folded", lambda network: copies.append(1) or network)
    first, second = (explainer(two_colors()) for _ in range(2))
    assert first.order == second.order and not copies
    assert modes == [module.training for module in model.modules()]
    assert trained == [value.requires_grad for value in model.parameters()]
    assert all(value.grad is None for value in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())
    model(torch.zeros(2, 3, 64, 64)).sum().backward()  # and it can be trained on


def test_a_network_that_cannot_be_traced_or_copied_is_explained_all_the_same() -> None:
    class Stubborn(Colors):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return super().forward(images) if float(images.sum()) < 1e9 else images

        def __deepcopy__(self, memo: dict) -> "Stubborn":
            raise NotImplementedError

    assert explain(Stubborn(), two_colors(), **OPTIONS).order == explain(Colors(), two_colors(), **OPTIONS).order


def test_a_half_precision_network_is_explained() -> None:
    assert explain(Colors().to(torch.bfloat16), two_colors(), **OPTIONS).flipped


def test_a_set_that_does_not_exist_is_said_and_drawn(tmp_path: Path) -> None:
    model = Returns(lambda logits: logits * 0 + torch.tensor([3.0, 0.0, 0.0]))
    found = explain(model, two_colors(), class_names=("$x", "b$", "鳥"), **OPTIONS)
    assert not found.flipped and len(found.order) == 4
    figure = found.plot(tmp_path / "picture.png")
    whole, removed, curve = figure.axes
    assert r"\$x" in whole.get_title() and "no set found" in removed.get_title()
    assert curve.lines[0].get_ydata().tolist() == pytest.approx(found.probabilities[:, 0].tolist())
    assert [text.get_text() for text in removed.texts] == ["1", "2", "3", "4"]
    assert Image.open(tmp_path / "picture.png").size[0] == 1500


def test_superpixels_are_explained_too() -> None:
    found = explain(Colors(), two_colors(), partition="slico", **OPTIONS)
    assert found.flipped and set(found.partition[found.regions]) == set(found.order)


def test_explaining_needs_torch_torchvision_timm_numpy_and_pillow_alone() -> None:
    """timm itself imports safetensors, yaml and tqdm (through huggingface_hub), so these are only forbidden to us."""
    code = """
import sys, numpy as np, torch, timm, torchvision
theirs = set(sys.modules)
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in BLOCK and name not in theirs:
            raise ImportError(f"{name} is blocked")
BLOCK = {"pydantic", "jaxtyping", "skimage", "pandas", "scipy", "mlflow", "optuna", "sklearn", "tyro", "matplotlib"}
for name in BLOCK & {module.split(".")[0] for module in theirs}:
    for module in [m for m in sys.modules if m.split(".")[0] == name]:
        sys.modules[module] = None
sys.meta_path.insert(0, Blocked())
import everycause
model = timm.create_model("test_resnet", num_classes=3)
found = everycause.explain(model, np.zeros((40, 50, 3), dtype=np.uint8), regions=16)
ours = sorted(name for name in sys.modules if name.startswith("everycause"))
assert found.probabilities.shape[1] == 3
print(*ours)
"""
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert set(ran.stdout.split()) == {
        "everycause", "everycause.data", "everycause.data.digests", "everycause.data.images", "everycause.errors",
        "everycause.explainer", "everycause.explanation", "everycause.explanation.inputs",
        "everycause.explanation.objectives", "everycause.explanation.regions", "everycause.explanation.scoring",
        "everycause.explanation.search", "everycause.networks", "everycause.precision", "everycause.shapes",
        "everycause.weights",
    }  # fmt: skip


class WholeImage(torch.nn.Module):
    """Says 0 as long as anything of the image is left."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        left = 10 * images.abs().amax(dim=(1, 2, 3)) - 0.5
        return torch.stack([left, torch.zeros_like(left)], dim=1)


@pytest.mark.parametrize("search", ["fast", "exhaustive", "greedy"])
def test_a_prediction_that_only_the_whole_image_carries_is_not_flipped_and_no_error(search: str) -> None:
    options = {"mean": [0.5] * 3, "standard_deviation": [0.5] * 3, "image_size": 32, "regions": 4, "search": search}
    for seed in range(5):
        image = np.random.default_rng(seed).integers(0, 256, (32, 32, 3), dtype=np.uint8)
        assert not explain(WholeImage(), image, **options).flipped


class Misleading(torch.nn.Module):
    """Says 0 unless the first of 64 regions is gone, which its gradient does not say: it points to the others."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        regions = torch.nn.functional.avg_pool2d(images.abs().mean(dim=1, keepdim=True), 8)[:, 0]
        others = 0.01 * regions.flatten(1)[:, 1:].sum(dim=1)
        left = torch.where(regions[:, 0, 0] > 0.01, 2.0, -2.0) + others
        return torch.stack([left, torch.zeros_like(left)], dim=1)


def test_what_the_derivative_misses_is_searched_for_in_every_region() -> None:
    options = {"mean": [0.5] * 3, "standard_deviation": [0.5] * 3, "image_size": 64, "regions": 64}
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    fast, exhaustive = (explain(Misleading(), image, search=search, **options) for search in ("fast", "exhaustive"))
    assert fast.flipped and fast.order == exhaustive.order == [0]
    assert fast.forwards > exhaustive.forwards


def test_the_package_offers_the_front_door() -> None:
    assert everycause.explain is explain and everycause.Explainer is Explainer


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    Image.fromarray(two_colors()).resize((90, 60)).save(tmp_path / "photo.jpg")
    return tmp_path / "photo.jpg"


def test_the_command_explains_a_photo_with_weights_of_a_file(
    photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    model = timm.create_model("test_resnet", num_classes=3)
    torch.save({"state_dict": model.state_dict()}, tmp_path / "weights.pth")
    out = tmp_path / "out.png"
    arguments = ["explain", str(photo), "--model", "timm:test_resnet", "--out", str(out), "--regions", "16"]
    assert main([*arguments, "--weights", str(tmp_path / "weights.pth")]) == 0
    printed = capsys.readouterr().out
    found = explain(model, photo, regions=16)
    assert f"prediction: class {found.label}, p = {found.probabilities[0, found.label]:.3f}" in printed
    assert f"forward passes: {found.forwards}" in printed and ", ".join(map(str, found.order)) in printed
    assert Image.open(out).format == "PNG"


def test_the_command_explains_a_photo_with_a_model_of_the_pipeline(
    photo: Path, tmp_path: Path, classifier: Classifier, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "model").mkdir()
    classifier.save(tmp_path / "model")
    out = ["--out", str(tmp_path / "x.png"), "--regions", "16"]
    assert main(["explain", str(photo), "--model", str(tmp_path / "model"), *out]) == 0
    assert "prediction: class-" in capsys.readouterr().out


COMMANDS = {
    "is not a timm model": ["--model", "timm:resnet999"],
    "timm knows no weights 'vgg11_bn.nothing'; those of vgg11_bn: vgg11_bn.tv_in1k": [
        "--model",
        "timm:vgg11_bn.nothing",
    ],
    "no weights were published for beit3_giant_patch14_224, and an untrained": [
        "--model",
        "timm:beit3_giant_patch14_224",
    ],
    "the folder 'nowhere' does not exist": ["--model", "nowhere"],
    "--weights belongs to a timm model": ["--model", "nowhere", "--weights", "x.pth"],
    "'nowhere.pth' is missing": ["--model", "timm:test_resnet", "--weights", "nowhere.pth"],
    "cannot be read as weights": ["--model", "timm:test_resnet", "--weights", str(ROOT / "pyproject.toml")],
    "the folder 'no/where' does not exist": ["--model", "timm:test_resnet", "--out", "no/where/x.png"],
}


@pytest.mark.parametrize("sentence", COMMANDS)
def test_a_command_that_cannot_work_is_one_sentence_and_exit_status_1(
    photo: Path, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["explain", str(photo), *COMMANDS[sentence]]) == 1
    printed = capsys.readouterr().err
    assert printed.startswith("error: ") and printed.count("\n") == 1
    with pytest.raises(UserError, match=sentence):
        raise UserError(printed)


def test_an_untrained_network_is_refused(
    photo: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(timm, "create_model", lambda *_, **__: (_ for _ in ()).throw(OSError("offline")))
    assert main(["explain", str(photo), "--model", "timm:resnet18"]) == 1
    assert "the weights of resnet18 are not in the local cache" in capsys.readouterr().err
