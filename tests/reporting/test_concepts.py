"""The filters of every class, drawn and tabulated."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from codebirds.codes import Code
from everycause.data.split import Split
from everycause.evaluation.predictions import Predictions
from everycause.explanation.exact_filters import Oracle
from everycause.explanation.filters import FilterBank
from everycause.explanation.heads import LastLayer
from everycause.models import Classifier
from everycause.reporting import explanations as doubts
from everycause.reporting import figures
from everycause.reporting import pictures as concepts
from everycause.reporting.results import Results
from tests.conftest import MODEL, STATISTICS
from tests.training.invented import invented_bank


def bank_of(histogram: list[list[int]]) -> FilterBank:
    counts = torch.tensor(histogram)
    return FilterBank(
        counts,
        counts * 0.5,
        torch.full((len(counts),), 10),
        Oracle("necessary", LastLayer(torch.zeros(1, 1), torch.zeros(1))),
        "model",
    )


def test_overlap_is_shared_over_all_filters_and_is_read_against_the_shared_parts() -> None:
    shared = concepts.overlap(bank_of([[9, 9, 0, 0], [9, 0, 9, 0], [0, 0, 1, 9]]).global_filters(0.15))

    assert np.allclose(shared, [[1, 1 / 3, 0], [1 / 3, 1, 0], [0, 0, 1]])
    assert np.allclose(
        concepts.overlap(bank_of([[9, 9, 0, 0], [9, 0, 9, 0], [0, 0, 1, 9]]).global_filters(0.0))[1, 2], 1 / 3
    )
    code = Code(3, 2, 2)
    everywhere = concepts.overlap_by_shared_parts(np.full((4, 4), 0.25), code)
    assert set(everywhere.values()) == {0.25} and max(everywhere) < code.length


def test_top_filters_go_by_count_and_then_by_activation() -> None:
    bank = bank_of([[3, 9, 9, 1]])
    bank = dataclasses.replace(bank, magnitude=torch.tensor([[9.0, 1.0, 2.0, 9.0]]))
    assert concepts.top_filters(bank, 0, 3).tolist() == [2, 1, 0]


@pytest.mark.parametrize(("name", "layer"), [("resnet10t", "layer4"), ("test_vit", "maps")])
def test_filters_are_drawn_where_they_have_places(train: Split, tmp_path: Path, name: str, layer: str) -> None:
    params = MODEL.model_copy(
        update={"name": name, "explained_layer": layer, "head": "linear" if layer == "maps" else "published"}
    )
    classifier = Classifier(params, train.class_names, 64, STATISTICS).eval()
    larger = Split(
        "train",
        train.labels,
        train.class_names,
        64,
        lambda index: train.read(index).repeat_interleave(2, 2).repeat_interleave(2, 3),
        "twice",
    )
    count = classifier.head()[0].shape[1]
    histogram = torch.randint(0, 9, (4, count), generator=torch.Generator().manual_seed(0))
    bank = dataclasses.replace(invented_bank(), histogram=histogram, magnitude=histogram.float())
    figure = concepts.filters_on_images(classifier, bank, larger, [0, 2], 0.15)
    figures.save(figure, tmp_path / "top.png")
    assert (tmp_path / "top.png").stat().st_size > 20_000 and len(figure.axes) == 2 * concepts.IMAGES * (
        concepts.TOP + 2
    )
    maps = concepts.maps_of(classifier, larger.read(np.arange(2)))
    assert maps.shape == (2, count, 64, 64)


def history(mc: list[float]) -> list[dict[str, float]]:
    return [
        {"step": number, "train/mc": value, "train/nonmc": 1.0, "train/active": 40.0}
        for number, value in enumerate(mc, 1)
    ]


def test_terms_that_do_not_move_show_in_table_and_figure() -> None:
    histories = {
        "continued": history([0.4913, 0.4912]),
        "filters": history([0.4913, 0.6]),
        "plain": [{"step": 1, "train/loss": 1.0}],
        "lost": [],
    }
    lines = concepts.terms_table(histories).splitlines()
    assert len(lines) == 4 and "0.4913 → 0.4912" in lines[2] and "0.4913 → 0.6" in lines[3]
    assert len(concepts.terms_figure(histories).axes[0].lines) == 2
    assert concepts.terms_figure({"plain": histories["plain"]}) is None and concepts.terms_table({"lost": []}) == ""


def predictions(right: list[bool]) -> Predictions:
    labels = torch.arange(len(right)) % 3
    logits = torch.nn.functional.one_hot(torch.where(torch.tensor(right), labels, (labels + 1) % 3), 3).float()
    return Predictions({"test": logits}, {"test": labels}, None)


def test_winners_and_losers_are_named_class_by_class() -> None:
    import pandas as pd

    stored = {
        ("base", 0): [True] * 6,
        ("continued", 0): [True, True, False, True, True, False],
        ("filters", 0): [True, False, True, True, True, True],
    }
    frame = pd.DataFrame([{"row": row, "seed": 0, "accuracy/test": 0.5} for row, _ in stored])
    results = Results(
        frame, {key: predictions(right) for key, right in stored.items()}, ("base", "continued", "filters"), (0,)
    )
    assert concepts.recalls(results, "continued", "test").tolist() == [1.0, 1.0, 0.0]
    lines = concepts.winners_table(results, ("a", "word-b", "c")).splitlines()
    assert lines[2:] == ["| `filters` | test | 1 | c +100.0 | 1 | b -50.0 |"]


def test_detection_tables_leave_out_what_cannot_be_measured(tmp_path: Path) -> None:
    full = {"flagged": 3.0, "recall": 0.5, "precision": 0.25, "f1": 1 / 3, "auroc": 0.75, "aupr": 0.5, "fpr_at_95": 0.1}
    few = {name: value for name, value in full.items() if name in ("flagged", "recall", "precision", "f1")}
    new = {"accuracy": 0.5, "flagged": 3.0} | {
        f"{judge}/{key}": value
        for judge in ("filters", "filters_random", "runner_up")
        for key, value in (("accuracy", 0.6), ("corrected", 2.0), ("broken", 1.0))
    }
    by_class = [
        {"class": "a", "predicted": 4, "errors": 0, "flagged": 0, "found": 0},
        {"class": "b", "predicted": 4, "errors": 1, "flagged": 1, "found": 1},
    ]
    report = {
        "test": {
            "images": 8,
            "errors": 1,
            "detectors": dict.fromkeys(doubts.COLORS, full),
            "relabelling": new,
            "by_class": by_class,
        },
        "easy": {"images": 8, "errors": 0, "detectors": dict.fromkeys(doubts.COLORS, few), "relabelling": new},
    }
    report = json.loads(json.dumps(report, sort_keys=True))  # as it comes from the disk
    table = doubts.detection_table(report)
    assert table.index("| test |") < table.index("| easy |") and table.index("`filters`") < table.index("`entropy`")
    assert (
        "| test | 1 / 8 | `gate` | 3 | 50.0 | 25.0 | 33.3 | 75.0 | 50.0 | 10.0 |" in table
        and "| easy | 0 / 8 | `gate` | 3 | 50.0 | 25.0 | 33.3 |  |  |  |" in table
    )
    assert "| easy | 3 | 50.0 | 60.0 (+2 −1) |" in doubts.relabelling_table(report)
    assert doubts.classes_table(report).splitlines()[2:] == ["| b | 4 | 1 | 1 | 1 |"]
    figures.save(doubts.detection_figure(report), tmp_path / "detection.png")
    assert (tmp_path / "detection.png").stat().st_size > 5_000
