"""Artifacts made up for the tests of reporting: what every stage stores, for three rows of four classes."""

from pathlib import Path

import torch

from everycause.artifacts import save_tensors, write_json
from everycause.evaluation.predictions import Predictions, answers
from everycause.reporting.tables import DETECTORS

ROWS = ("base", "continued", "masks")
CLASSES = ("word-00", "$igma $", "50%_b", "c|d")
VIEWS = ("test", "art_painting", "cartoon", "sketch", "corruptions/fog/1", "corruptions/fog/3")
VIEWS += ("corruptions/snow/1", "corruptions/snow/3")
FULL = {"flagged": 3.0, "recall": 0.5, "precision": 0.25, "f1": 1 / 3, "auroc": 0.75, "aupr": 0.5, "fpr_at_95": 0.1}
FEW = {name: FULL[name] for name in ("flagged", "recall", "precision", "f1")}


def predictions(right: list[bool], views: tuple[str, ...] = ("test",), classes: int = 4) -> Predictions:
    """The same images in every view, classified correctly where `right` says so."""
    labels = torch.arange(len(right)) % classes
    answer = torch.where(torch.tensor(right), labels, (labels + 1) % classes)
    logits = torch.nn.functional.one_hot(answer, classes).float()
    return Predictions(dict.fromkeys(views, answers(logits, labels)), classes)


def store_evaluation(folder: Path, one: Predictions) -> None:
    """Predictions and metrics of one row and seed, as evaluate_ood stores photographs."""
    folder.mkdir(parents=True)
    one.save(folder)
    measured = {f"accuracy/{view}": one.accuracy(view) for view in one.views}
    for name in {view.rsplit("/", 1)[0] for view in one.views if view.startswith("corruptions/")}:
        measured[f"accuracy/{name}"] = float(one.correctness(name).mean())
    if one.family("corruptions"):
        measured["accuracy/corruptions"] = float(one.correctness("corruptions").mean())
    write_json(folder / "metrics.json", measured)
    names = list(CLASSES[: one.classes])
    write_json(folder / "data.json", {"class_names": names, "image_size": 8, "cues": [], "code": None})


def detection() -> dict:
    """What detect_misclassifications stores: a split with errors, and one without."""
    new = {"accuracy": 0.5, "flagged": 3.0}
    for judge in ("filters", "filters_random", "runner_up"):
        new |= {f"{judge}/accuracy": 0.6, f"{judge}/corrected": 2.0, f"{judge}/broken": 1.0}
    counted = {"predicted": 4, "errors": 1, "flagged": 1, "found": 1}
    by_class = [{"class": "a", **dict.fromkeys(counted, 0)}, {"class": "b_$", **counted}]
    hard = {"images": 8, "errors": 1, "detectors": dict.fromkeys(DETECTORS, FULL), "relabelling": new}
    easy = {"images": 8, "errors": 0, "detectors": dict.fromkeys(DETECTORS, FEW), "relabelling": new}
    return {"art_painting": easy, "corruptions": easy, "test": hard | {"by_class": by_class}}


def store_evaluations(artifacts: Path) -> None:
    """Every row's predictions on photographs, one seed."""
    for row, right in zip(ROWS, (5, 6, 8), strict=True):
        one = predictions([number < right for number in range(12)], VIEWS)
        store_evaluation(artifacts / "evaluation" / row / "seed-0", one)


def store_everything(artifacts: Path) -> None:
    """What all stages store."""
    store_evaluations(artifacts)
    images = torch.arange(2 * 3 * 8 * 8, dtype=torch.int64).view(2, 3, 8, 8).remainder(256).to(torch.uint8)

    def place(kind: str, variant: str) -> Path:
        folder = artifacts / kind / variant / "seed-0"
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    names = {"names": ["train", "art painting"]}
    save_tensors(place("evaluation", "base") / "pictures.safetensors", {"000": images, "001": images}, names)
    write_json(place("masks", "counterfactual") / "summary.json", {"searched": 12.0, "flip_rate": 0.9})
    faithful = {
        "selectors": {"counterfactual": {"flip_rate": 0.9, "regions_at_flip": 4.1}, "random": {"flip_rate": 0.1}}
    }
    write_json(place("faithfulness", "base") / "faithfulness.json", faithful | {"masks": {"pointing_game": 0.5}})
    write_json(place("faithfulness", "masks") / "faithfulness.json", faithful | {"masks": {}})
    filters = {
        "filters": 6.0,
        "all_classes/filters_per_image": 2.0,
        "filters_are": "channels",
        "frequency_threshold": 0.1,
    }
    write_json(place("filters", "minimum_correct") / "summary.json", filters)
    tensors = {"shares": torch.rand(4, 6), "overlap": torch.rand(4, 4).double(), "images": images}
    maps = {"titles": [["$igma $", "its filters", "3: 50%"]] * 2}
    save_tensors(
        place("filters", "minimum_correct") / "pictures.safetensors", tensors | {"maps": torch.rand(2, 2, 4, 4)}, maps
    )
    write_json(place("detection", "base") / "detection.json", detection())
    epoch = '{"step": 1, "train/mc": 1.0, "train/nonmc": 2.0, "train/active": 3.0}\n'
    for row in ("continued", "masks"):
        (place("models", row) / "history.jsonl").write_text(epoch * 2)
        write_json(place("models", row) / "row.json", {"row": row, "meaning": f"what {row} adds"})
    example = {"images": images, "removed": images[:, 0] > 100, "counterfactuals": images}
    parts = torch.full((2, 8, 8), 255, dtype=torch.uint8)
    parts[:, :2] = 1
    lost, kept = ({"probability": value, "class": name} for value, name in ((0.1, "other"), (0.9, "word-<b>$b$</b>")))
    for row in ("masks", "object_exchange"):
        seen = {"base": {"images": kept, "counterfactuals": lost}, row: {"images": kept, "counterfactuals": kept}}
        told = {"titles": ["word-<b>$b$</b>", "d"], "seen": {model: [one] * 2 for model, one in seen.items()}}
        save_tensors(place("models", row) / "pictures.safetensors", example | {"parts": parts}, told)
    rounds = [{"round/round": 0.0}, {"round/round": 1.0, "round/regions_at_flip": 4.0}]
    write_json(place("models", "masks_rounds") / "rounds.json", rounds)
