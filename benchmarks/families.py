"""Which of timm's families of networks train and can be explained with `model.head: linear`.

    python -m benchmarks.families                 # a small network of every family; about ten minutes on two cores
    python -m benchmarks.families --only coat pit

Each network is built at its own image size without weights, takes one training step, shows its explained layer and its
filters, and is saved and loaded. One line for each family; the exit code is 1 if one failed without a sentence.
"""

import argparse
import re
import sys
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import timm
import torch
from torch.nn.functional import cross_entropy

from everycause.data.images import Statistics
from everycause.errors import UserError
from everycause.models import Classifier, ModelParams, load

SMALL = ("test_", "atto", "femto", "pico", "nano", "zepto", "xxt", "xxs", "tiny", "_t", "mini", "xs", "small", "_s")
"""Parts of names that stand for small networks, the smallest first."""
CANDIDATES = 4
"""Networks of a family whose weights are counted; counting all of a family's takes minutes."""
LARGEST_SIDE = 256
"""Networks for larger images are tried at this side, in pixels, where they allow it."""
CLASSES = ("first", "second", "third")


def families(only: list[str] | None = None) -> Iterator[tuple[str, str]]:
    """Every family of timm, or those asked for, and a small network of each."""
    for family in only or timm.list_modules():
        if names := timm.list_models(module=family):
            yield family, min(sorted(names, key=_size_by_name)[:CANDIDATES], key=_weights)


def _size_by_name(name: str) -> tuple[int, int, str]:
    small = next((rank for rank, part in enumerate(SMALL) if part in name), len(SMALL))
    return small, int((re.findall(r"\d+", name) or ["0"])[0]), name


def _weights(name: str) -> int:
    with torch.device("meta"):
        try:
            return sum(value.numel() for value in timm.create_model(name).parameters())
        except (RuntimeError, NotImplementedError):  # some constructors compute with their weights
            return sys.maxsize


def side_of(name: str) -> int:
    """The side of the square images that a network is tried on, in pixels."""
    published = timm.get_pretrained_cfg(name)
    own = 224 if published is None else max(published.input_size[1:])
    return min(own, LARGEST_SIDE) if published is None or not published.fixed_input_size else own


def tried(name: str, head: str = "linear") -> str:
    """One training step, the explained layer, the filters, and saving; what the network's filters are, in words.

    Raises:
        UserError: the network cannot be used in this way.
    """
    side = side_of(name)
    params = ModelParams(name=name, pretrained=False, weights="cache", explained_layer="maps", head=head, dropout=0.1)
    torch.manual_seed(0)
    classifier = Classifier(params, CLASSES, side, Statistics((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))).train()
    images = torch.randn(2, 3, side, side)
    seen = classifier.readout(images)
    cross_entropy(seen.logits, torch.tensor([0, 2])).backward()
    last = classifier.network.get_classifier()
    assert bool(last.weight.grad.any()) and seen.activations.shape == (2, last.in_features), name
    torch.optim.SGD(classifier.parameters(), lr=1e-3).step()
    weight, _ = classifier.eval().head()
    assert weight.shape == (len(CLASSES), last.in_features), name
    with TemporaryDirectory() as folder, torch.no_grad():
        classifier.save(Path(folder))
        again = load(Path(folder))
        assert torch.allclose(again(images), classifier(images), rtol=1e-3, atol=1e-4), name
    return classifier.filters_are()


def main() -> int:
    """Try every family; 1 if one failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", help="families, by timm's module names")
    only, failed = parser.parse_args().only, 0
    warnings.filterwarnings("ignore")
    for family, name in families(only):
        try:
            found = tried(name)
        except UserError as error:
            found = f"REFUSED: {error}"
        except Exception as error:  # a network of timm may fail in any way: that is what is looked for
            failed += 1
            place = traceback.extract_tb(error.__traceback__)[-1]
            found = f"FAILED: {type(error).__name__}: {' '.join(str(error).split())[:160]} ({place.name})"
        sys.stdout.write(f"{family} ({name}): {found}\n")
        sys.stdout.flush()
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
