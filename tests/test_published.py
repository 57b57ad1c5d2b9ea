"""The published one-seed run, and a run of your own with the same params, against the study of six seeds."""

import json
import subprocess
from pathlib import Path

import pandas as pd
import pytest
import yaml

from everycause.worlds.analysis import surprises
from tests.imports import ROOT

STUDY = ROOT / "reports" / "study" / "study.csv"
OWN = ROOT / "reports" / "run"
"""What `make repro` writes."""


def is_like_the_published(lock: Path) -> bool:
    """Whether a run was made with the params that Git has, those of stages that judge and report left out."""
    if not lock.is_file():
        return False
    text = subprocess.run(["git", "show", "HEAD:params.yaml"], cwd=ROOT, capture_output=True, text=True).stdout
    published, stages = yaml.safe_load(text or "{}") or {}, yaml.safe_load(lock.read_text())["stages"]
    used: dict = {}
    for name, stage in stages.items():
        if name.split("@")[0] in ("train_base", "accumulate_filters", "generate_masks", "retrain", "evaluate_ood"):
            used |= stage.get("params", {}).get("params.yaml", {})
    return bool(used) and all(published.get(name) == value for name, value in used.items())


@pytest.mark.parametrize("place", ["results", "run"])
def test_a_run_lies_where_one_more_seed_of_the_study_would(place: str) -> None:
    file = ROOT / "reports" / place / "metrics.json"
    if place == "run" and not (file.is_file() and is_like_the_published(ROOT / "dvc.lock")):
        pytest.skip("no run of your own with the published params")
    found = surprises(pd.read_csv(STUDY), "premise", json.loads(file.read_text()))
    assert not found, "; ".join(found)


def test_the_study_has_six_seeds_of_every_row_in_every_world() -> None:
    study = pd.read_csv(STUDY)
    raw = yaml.safe_load((ROOT / "params.yaml").read_text())["worlds"]["study"]
    assert sorted(study.seed.unique()) == raw["seeds"] and len(raw["seeds"]) >= 6
    assert set(study.world) == set(raw["worlds"]) and set(study.row) == {"base", *raw["rows"]}
    complete = study[study.measure == "completeness"].groupby(["world", "row"]).size()
    assert (complete == len(raw["seeds"])).all()
