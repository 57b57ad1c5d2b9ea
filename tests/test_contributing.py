"""CONTRIBUTING.md is right: what it adds is really added, in a copy of the packages, and runs on tiny data."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from sklearn.datasets import load_digits

from tests.conftest import ROOT

TEXT = (ROOT / "CONTRIBUTING.md").read_text()
EXAMPLES = re.findall(r"```python\n# (\S+\.py) \((.*?)\)\n(.*?)```", TEXT, flags=re.DOTALL)
"""File, place in the file, and code of every example."""
PLACES = ("in ", "above ")
SCRIPT = """
import json, pathlib, torch
from everycause.data.shifts import views
from everycause.data.sources import check, files, open_split
from everycause.explanation.masks import generate
from everycause.params import read
from everycause.training.counterfactuals import Recipe, Upstream
from everycause.training.fit import train_base
from everycause.training.rows import retrain
from everycause.tuning.upstream import TrialParams

p = read("data", "evaluation", *TrialParams.model_fields)
check(p.data, 1)
train, validation = open_split(p.data, "train", 1), open_split(p.data, "validation", 1)
device = torch.device("cpu")
base, epochs = train_base(p.model, p.training, train, validation, 0, device)
accuracy = list(epochs)[-1].measures["validation/accuracy"]
masks = generate(base, train, p.masks, pathlib.Path("."), "base")
recipe = Recipe(p.data, p.masks, p.background, p.exchange, p.loss, 0.0, 1)
losses = {}
for row in ("negatives", "masks_bidirectional"):
    upstream = Upstream(base, "base", train, validation, lambda: masks, lambda: None, False)
    retraining = retrain(row, upstream, recipe, p.retraining, p.rounds, 0)
    losses[row] = [epoch.measures["train/augment"] for epoch in retraining.epochs()]
shown = {view.name: view.split for view in views(p.data, p.evaluation.corruptions, p.evaluation.severities, 1)}
torch.save({name: split.all() for name, split in shown.items()}, "views.pt")
found = {"files": [str(file) for file in files(p.data)], "train": len(train), "identity": train.identity}
found |= {"accuracy": accuracy, "order": masks.order.tolist(), "areas": masks.areas.tolist(), "losses": losses}
pathlib.Path("found.json").write_text(json.dumps(found))
"""


def added(text: str, place: str, code: str) -> str:
    """A module with an example at its place: in a mapping or an import, or above the line that begins so."""
    word, start = place.split(" ", 1)
    lines = text.splitlines(keepends=True)
    first = re.compile(rf"{start}\b" if " " in start else rf"{start}\b.* = ")
    number = next(number for number, line in enumerate(lines) if first.match(line))
    if word == "above":
        lines.insert(number, code)
    elif " " in start:
        lines[number] = lines[number].replace(start, f"{start} {code.strip()}", 1)
    else:
        assert lines[number].endswith("{\n"), f"{start} is no mapping with a line for each entry"
        lines.insert(number + 1, code)
    return "".join(lines)


def write_arrays(root: Path) -> None:
    """Scans of four digits, orange and of 32 × 32 pixels, as the example of a data source reads them."""
    digits = load_digits()
    chosen = digits.target < 4
    gray = np.kron(digits.images[chosen], np.ones((4, 4)))
    images = (gray[..., None] * np.array([15.0, 7.5, 0.0])).astype(np.uint8)
    labels = digits.target[chosen].astype(np.int64)
    root.mkdir()
    for name, rows in {"train": slice(0, 256), "validation": slice(256, 320), "test": slice(320, 352)}.items():
        np.savez(root / f"{name}.npz", images=images[rows], labels=labels[rows])


def example_params() -> dict:
    """The smoke profile with everything that the examples add."""
    raw = yaml.safe_load((ROOT / "profiles" / "smoke.yaml").read_text())
    raw["data"] |= {"source": "arrays", "root": "arrays", "arrays": {"image_size": 32, "classes": 4}}
    raw["rows"] = ["negatives", "masks_bidirectional"]
    raw["evaluated"] = ["base", *raw["rows"]]
    raw["faithfulness"] |= {"rows": ["base"], "selectors": ["largest"]}
    raw["masks"] |= {"selector": "largest", "partition": "slico", "regions": 16, "images": 24, "max_regions": 4}
    raw["evaluation"] |= {"corruptions": ["grayscale", "gaussian_noise"], "severities": [1, 5]}
    return raw


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the packages with every example added, after the script ran in it."""
    folder = tmp_path_factory.mktemp("copy")
    for package in ("codebirds", "everycause"):
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    for path, place, code in EXAMPLES:
        file = folder / path
        assert file.exists() == (place != "new file"), path
        file.write_text(code if place == "new file" else added(file.read_text(), place, code))
    write_arrays(folder / "arrays")
    (folder / "params.yaml").write_text(yaml.safe_dump(example_params()))
    environment = os.environ | {"PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", SCRIPT]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def found(copy: Path) -> dict:
    return json.loads((copy / "found.json").read_text())


def test_every_python_block_is_an_example_with_a_place() -> None:
    assert len(EXAMPLES) == TEXT.count("```python") >= 8
    assert all(place == "new file" or place.startswith(PLACES) for _, place, _ in EXAMPLES)


def test_a_selector_is_one_function_and_one_line(found: dict) -> None:
    areas = torch.tensor(found["areas"])
    for row, order in enumerate(found["order"]):
        chosen = [region for region in order if region >= 0]
        assert chosen == areas[row].argsort(descending=True, stable=True)[: len(chosen)].tolist() and chosen


def test_a_row_is_one_line_or_one_file_and_its_name(found: dict) -> None:
    assert all(np.isfinite(losses).all() and min(losses) > 0 for losses in found["losses"].values())
    assert found["losses"]["negatives"] != found["losses"]["masks_bidirectional"]


def test_a_data_source_is_one_file_and_one_line(copy: Path, found: dict) -> None:
    assert found["files"] == [f"arrays/{name}.npz" for name in ("train", "validation", "test")]
    assert found["train"] == 256 and found["accuracy"] > 0.5
    stored = np.load(copy / "arrays" / "test.npz")["images"]
    read = torch.load(copy / "views.pt")["test"]
    assert torch.equal(read, torch.from_numpy(stored).permute(0, 3, 1, 2))


def test_a_corruption_is_one_file_and_one_line(copy: Path) -> None:
    shown = torch.load(copy / "views.pt")
    names = [f"corruptions/{name}/{severity}" for name in ("grayscale", "gaussian_noise") for severity in (1, 5)]
    assert list(shown) == ["test", *names]
    whole, half = shown["corruptions/grayscale/5"].float(), shown["corruptions/grayscale/1"].float()
    mean = shown["test"].float().mean(dim=1, keepdim=True).expand_as(whole)
    assert (whole - mean).abs().max() <= 0.5 and (half - mean).abs().max() > 50
