"""A timm classifier with its explained layer named: logits, activations, save, load."""

import difflib
import os
from math import isqrt
from pathlib import Path
from typing import Literal, NamedTuple

import timm
import torch
from pydantic import Field
from torch import Tensor, nn

from everycause.artifacts import fingerprint, load_tensors, save_tensors
from everycause.data.split import Statistics
from everycause.errors import UserError
from everycause.hooks import evaluating, recording
from everycause.params import Section
from everycause.shapes import Float

FILE = "model.safetensors"


class ModelParams(Section):
    """Which network."""

    name: str = Field(min_length=1)
    """Any timm model."""
    pretrained: bool
    """Start from timm's pretrained weights; they must already be in the local cache."""
    explained_layer: str = Field(min_length=1)
    """Dotted name of the layer whose channels are the filters; `maps` with a linear head."""
    head: Literal["published", "linear"]
    """What follows the features: timm's own head, or average pooling, dropout and one linear layer, from which filters can always be read."""
    dropout: float = Field(ge=0, lt=1)
    """Share of the pooled features that is dropped in training, before the last layer."""


class Readout(NamedTuple):
    """One forward pass, seen at the explained layer and at the end."""

    logits: Float[Tensor, "batch classes"]
    activations: Float[Tensor, "batch filters"]
    """Averages of the explained layer's channels over places, or over the patch tokens of a transformer."""


class LayerOutput(NamedTuple):
    """One forward pass with what the explained layer said."""

    output: Tensor
    """As the layer gives it; Classifier.as_maps lays it out."""
    logits: Float[Tensor, "batch classes"]


class LinearOnMaps(nn.Module):
    """The features of a timm network, averaged over their places, with dropout and one linear layer: a network cut after its last block."""

    def __init__(self, params: ModelParams, trunk: nn.Module, num_classes: int) -> None:
        super().__init__()
        trunk.reset_classifier(0)
        if hasattr(trunk, "pre_logits"):
            trunk.pre_logits = nn.Identity()  # the fully connected layers of VGG are cut away
        self.trunk, self.maps = trunk, nn.Identity()
        self.num_prefix_tokens = getattr(trunk, "num_prefix_tokens", 0)
        self.patches = hasattr(trunk, "patch_embed") and hasattr(trunk, "num_prefix_tokens")
        self.channels_last = getattr(trunk, "output_fmt", "NCHW") == "NHWC"
        self.dropout, self.fc = nn.Dropout(params.dropout), nn.Linear(trunk.num_features, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits."""
        features = self.trunk.forward_features(images)
        maps = self.maps(features.permute(0, 3, 1, 2) if self.channels_last else features)
        return self.fc(self.dropout(maps[:, self.num_prefix_tokens :].mean(1) if self.patches else maps.mean((2, 3))))

    def get_classifier(self) -> nn.Linear:
        """The last layer, under timm's name."""
        return self.fc


class Classifier(nn.Module):
    """A network together with everything that is needed to use it on images again.

    Raises:
        UserError: timm does not know the name, or the network has no such layer.
    """

    def __init__(
        self, params: ModelParams, class_names: tuple[str, ...], image_size: int, statistics: Statistics
    ) -> None:
        super().__init__()
        self.params = params
        self.class_names = class_names
        self.image_size = image_size
        self.statistics = statistics
        self.network = _create(params, len(class_names), image_size)
        layers = dict(self.network.named_modules())
        if params.explained_layer not in layers:
            names = [name for name, _ in self.network.named_children()]
            raise UserError(
                f"model.explained_layer '{params.explained_layer}' does not exist in {params.name}: its top-level layers are {', '.join(names)}"
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
        """Logits and pooled activations of normalized images: what is already pooled stays, maps and patch tokens are averaged.

        Raises:
            UserError: the explained layer gives neither feature maps nor a square of patch tokens nor a pooled vector.
        """
        output, logits = self.seen(images)
        return Readout(logits, output if output.ndim == 2 else self.as_maps(output).mean(dim=(2, 3)))

    def seen(self, images: Float[Tensor, "batch 3 height width"]) -> LayerOutput:
        """Output of the explained layer and logits of normalized images."""
        with recording(self.explained_layer) as outputs:
            logits = self.network(images)
        return LayerOutput(outputs[-1], logits)

    def as_maps(self, output: Tensor) -> Float[Tensor, "batch filters rows columns"]:
        """The explained layer's output, or its gradient, as maps; patch tokens are laid out as the grid that they are.

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
                f"model.explained_layer '{self.params.explained_layer}' of {self.params.name} gives {output.ndim}-dimensional output, neither feature maps nor a square "
                "of patch tokens: name a convolutional layer or a transformer block"
            )
        return output

    def head(self) -> tuple[Float[Tensor, "classes filters"], Float[Tensor, "classes"]]:
        """Weight and bias of the linear map from pooled activations to logits, checked on noise.

        Raises:
            UserError: the logits are not a linear function of the pooled activations.
        """
        linear = self.network.get_classifier()
        if isinstance(linear, nn.Linear):
            noise = torch.randn(2, 3, self.image_size, self.image_size, generator=torch.Generator().manual_seed(0))
            with evaluating(self), torch.no_grad():
                seen = self.readout(noise.to(self.device))
            if seen.activations.shape[1] == linear.in_features and torch.allclose(
                linear(seen.activations), seen.logits, rtol=1e-3, atol=1e-4
            ):
                return linear.weight.detach(), linear.bias.detach()
        raise UserError(
            f"filters need logits that are linear in the averaged channels of '{self.params.explained_layer}', and those of {self.params.name} are not: "
            "name the layer whose average the last layer reads (in a transformer that averages its patch tokens, or a ConvNeXt, the normalization before it), "
            "or set model.head to linear and model.explained_layer to maps"
        )

    @torch.no_grad()
    def places(self) -> tuple[int, ...]:
        """Rows and columns of the explained layer's maps, the number of tokens, or nothing where it gives a pooled vector."""
        with evaluating(self):
            output = self.seen(torch.zeros(1, 3, self.image_size, self.image_size, device=self.device)).output
        match output.ndim:
            case 4 if output.shape[2] * output.shape[3] > 1:
                return tuple(output.shape[2:])
            case 3:
                return (output.shape[1],)
        return ()

    def filters_are(self) -> str:
        """What a filter of the explained layer is, in words."""
        layer, places = f"`{self.params.explained_layer}` of {self.params.name}", self.places()
        match len(places):
            case 2:
                return f"channels of {layer}, averaged over {places[0]} × {places[1]} places"
            case 1:
                return f"channels of the mean patch token of {layer}: not localized as those of a convolution are, since every token has seen the whole image"
        return f"units of the pooled vector of {layer}: they have no place in the image"

    def save(self, folder: Path) -> None:
        """Write weights and description into a folder, as one file."""
        description = {
            "params": self.params.model_dump(), "class_names": list(self.class_names), "image_size": self.image_size,
            "mean": list(self.statistics.mean), "standard_deviation": list(self.statistics.standard_deviation),
        }  # fmt: skip
        save_tensors(folder / FILE, self.network.state_dict(), description)


def load(folder: Path, device: torch.device | str = "cpu") -> Classifier:
    """A saved classifier, in evaluation mode.

    Raises:
        UserError: there is none; the sentence names the stage to run.
    """
    made_by = "train_base" if "base" in folder.parts else "retrain"
    tensors, description = load_tensors(folder / FILE, made_by)
    params = ModelParams(**description["params"]).model_copy(update={"pretrained": False})
    statistics = Statistics(tuple(description["mean"]), tuple(description["standard_deviation"]))
    classifier = Classifier(params, tuple(description["class_names"]), description["image_size"], statistics)
    classifier.network.load_state_dict(tensors)
    return classifier.to(device=device, memory_format=torch.channels_last).eval()


def model_fingerprint(folder: Path) -> str:
    """Identifies the weights in a folder."""
    return fingerprint(folder / FILE)


def _create(params: ModelParams, num_classes: int, image_size: int) -> nn.Module:
    if not timm.is_model(params.name):
        close = difflib.get_close_matches(params.name, timm.list_models(), n=3)
        hint = f": did you mean {' or '.join(close)}?" if close else ": timm.list_models() lists them"
        raise UserError(f"model.name '{params.name}' is not a timm model{hint}")
    published = timm.get_pretrained_cfg(params.name)
    sized = {"img_size": image_size} if published is not None and published.fixed_input_size else {}
    if params.dropout and params.head == "published":
        sized["drop_rate"] = params.dropout
    if not params.pretrained:
        return _with_head(params, timm.create_model(params.name, num_classes=num_classes, **sized), num_classes)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # without it, timm retries for most of a minute before it fails
    try:
        return _with_head(
            params, timm.create_model(params.name, pretrained=True, num_classes=num_classes, **sized), num_classes
        )
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"the pretrained weights of {params.name} are not in the local Hugging Face cache and nothing is downloaded here: "
            "put them there (huggingface_hub.snapshot_download on a machine with network) or set model.pretrained to false"
        ) from error


def _with_head(params: ModelParams, network: nn.Module, num_classes: int) -> nn.Module:
    return network if params.head == "published" else LinearOnMaps(params, network, num_classes)
