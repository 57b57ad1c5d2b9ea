"""Artifacts on disk: written beside and renamed, so that nothing half-written is ever seen."""

import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from everycause.errors import UserError


@contextmanager
def atomic_folder(out: Path, resume: str | None = None) -> Iterator[Path]:
    """A folder to write into; it becomes `out` when the block succeeds and vanishes when it does not.

    With a `resume` key the folder stays when the block is cut short by anything but a user's mistake, and the next call
    with the same key finds what was finished; another key starts anew.
    """
    partial, key = out.with_name(out.name + ".partial"), out.with_name(out.name + ".resume")
    if resume is None or not key.is_file() or key.read_text() != resume:
        shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True, exist_ok=True)
    if resume is not None:
        key.write_text(resume)
    try:
        yield partial
    except BaseException as error:
        if resume is None or isinstance(error, ValueError):
            shutil.rmtree(partial, ignore_errors=True)
            key.unlink(missing_ok=True)
        raise
    shutil.rmtree(out, ignore_errors=True)
    partial.rename(out)
    key.unlink(missing_ok=True)


def fingerprint(*parts: str | bytes | Path) -> str:
    """A short hash of texts, bytes and files."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.read_bytes() if isinstance(part, Path) else part.encode() if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()[:16]


def save_tensors(path: Path, tensors: dict[str, Tensor], description: dict[str, Any]) -> None:
    """Tensors and a JSON description in one safetensors file with reproducible bytes."""
    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    save_file(plain, path, metadata={"description": json.dumps(description, sort_keys=True)})


def load_tensors(path: Path, made_by: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What save_tensors wrote.

    Raises:
        UserError: the file is missing or not readable; the sentence names the stage that makes it.
    """
    if not path.is_file():
        raise UserError(f"{path} does not exist: run the stage {made_by} first (`dvc repro {made_by}`)")
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, json.loads(file.metadata()["description"])
    except (SafetensorError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} is not a readable artifact ({error}): delete it and run the stage {made_by} again"
        ) from error


def load_explanation(path: Path, made_by: str, model: str, data: str | None = None) -> dict[str, Tensor]:
    """The tensors of an explanation, whose description names the model that it explains, and the data where that matters.

    Raises:
        UserError: the file is missing or not readable, or explains a model or data with another fingerprint.
    """
    tensors, description = load_tensors(path, made_by)
    if description["model"] != model:
        raise UserError(
            f"{path} was made for another model ({description['model']}, not {model}): run the stage {made_by} again"
        )
    if data is not None and description.get("data") != data:
        raise UserError(
            f"{path} was made from other data ({description.get('data')}, not {data}): run the stage {made_by} again"
        )
    return tensors


def write_json(path: Path, value: Any) -> None:
    """Indented JSON with sorted keys."""
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n")


def read_json(path: Path, made_by: str) -> Any:
    """What write_json wrote.

    Raises:
        UserError: the file is missing; the sentence names the stage that makes it.
    """
    if not path.is_file():
        raise UserError(f"{path} does not exist: run the stage {made_by} first (`dvc repro {made_by}`)")
    return json.loads(path.read_text())
