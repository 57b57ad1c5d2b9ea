"""How stages start: what is a sentence, what is a traceback, and what params.yaml asks for."""

import errno
import os
import re
import sys
from pathlib import Path

import pytest
import torch
import yaml

from everycause.errors import UserError, memory_errors
from everycause.params import flattened
from stages import tune
from stages.entry import asked, run
from stages.recording import BATCHES
from tests.conftest import ROOT


def started(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """A stage that fails."""

    def main() -> None:
        raise error

    monkeypatch.setattr(sys, "argv", ["stage"])
    run(main)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (UserError("params.yaml: a key is missing"), "error: params.yaml: a key is missing"),
        (OSError(errno.EACCES, os.strerror(errno.EACCES), "params.yaml"), "error: 'params.yaml' cannot be used"),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), "error: the disk is full: "),
    ],
)
def test_mistakes_and_disks_that_fail_are_one_sentence(
    monkeypatch: pytest.MonkeyPatch, error: Exception, message: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        started(monkeypatch, error)
    assert str(ended.value.code).startswith(message) and "\n" not in str(ended.value.code)


@pytest.mark.parametrize("error", [ValueError("of numpy"), RuntimeError("of torch"), FileNotFoundError(2, "of Python")])
def test_errors_of_libraries_keep_their_traceback(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    with pytest.raises(type(error)) as raised:
        started(monkeypatch, error)
    assert raised.value is error


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory: you tried"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        MemoryError(),
    ],
)
def test_exhausted_memory_is_one_sentence_that_names_the_parameter(error: Exception) -> None:
    raw = flattened(yaml.safe_load((ROOT / "params.yaml").read_text()))
    for stage, name in BATCHES.items():
        said = f"{stage}: the memory of the GPU is exhausted; params.yaml: {name} is {raw[name]}: lower it"
        with pytest.raises(UserError, match=f"^{re.escape(said)}$"), memory_errors(stage, True, name, raw):
            raise error
    said = "evaluate_ood: the memory of the machine is exhausted; end what else uses it"
    with pytest.raises(UserError, match=said), memory_errors("evaluate_ood", False, "", raw):
        raise error


def test_other_errors_in_a_stage_are_no_matter_of_memory() -> None:
    with pytest.raises(RuntimeError, match="of torch"), memory_errors("retrain", True, "", {}):
        raise RuntimeError("of torch")


def test_what_is_asked_for_is_read_and_a_damaged_file_is_named(tmp_path: Path) -> None:
    file = tmp_path / "retrain.json"
    assert asked(None) and asked(file)
    for text, expected in (('{"asked": true}', True), ('{"asked": false}', False)):
        file.write_text(text)
        assert asked(file) is expected
    for text in ("", "{", "[]", "{}", "\x00"):
        file.write_text(text)
        with pytest.raises(UserError, match="retrain.json is damaged .* run the stage check_inputs again"):
            asked(file)


def test_a_sweep_refuses_a_wrong_place_before_any_trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = yaml.safe_load((ROOT / "profiles" / "smoke.yaml").read_text())
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(raw))
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "one.jpg").write_text("pixels")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="holds files that no stage of this project wrote"):
        tune.main(artifacts=Path("artifacts"), out=Path("photos"))
    assert not (tmp_path / "tuning").exists()
