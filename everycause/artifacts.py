"""Artifacts on disk: folders that are whole or absent, tensors and JSON with reproducible bytes, and fingerprints.

An artifact is a folder that one stage wrote. It is written beside its final place and renamed when it is complete, so
nobody ever reads half of one. A marker in it says who wrote it: a stage given a wrong --out refuses to replace the
work of another.
"""

import ast
import errno
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from everycause.errors import UserError, disk_errors, size_of

HISTORY = "history.jsonl"
"""File in the artifact of a recorded stage: one line of measures per step."""
MARKER = ".artifact"
"""File in every artifact: the stage, row and seed that wrote it."""
PARTS = ".parts"
"""File in a folder that is being written: name and hash of each finished part. It is gone when the folder is whole."""
DAMAGED = ".damaged"
"""What the name of a damaged part ends in until the folder is whole."""
UNFINISHED = "unfinished-"
"""What the name of a file begins with that only serves to go on; it is gone when the folder is whole."""
ROOT = Path(__file__).parents[1]
"""The folder that holds the packages below."""
PACKAGES = ("codebirds", "everycause", "stages")
NOT_FINGERPRINTED = {
    "everycause",
    "everycause.errors",
    "everycause.params",
    "everycause.tracking",
    "stages.entry",
    "stages.recording",
}
"""Modules that can stop a stage or record it, but cannot change what it writes."""

log = logging.getLogger(__name__)


@contextmanager
def atomic_folder(out: Path, owner: str | None = None, resume: str | None = None) -> Iterator[Path]:
    """A folder to write into, which becomes `out` when the block succeeds and is removed when it does not.

    Args:
        out: The final place; where a symbolic link stands, the folder that it names.
        owner: Who writes, such as "retrain/joint/seed-0". What stands at `out` is replaced only if this owner wrote it;
            without an owner the place is private to the caller and nothing is checked.
        resume: Key of the unfinished work. With it, finished parts stay when the block is cut short for any reason,
            and the next call with the same key finds them; another key starts anew.

    Raises:
        UserError: `out` is a file or another owner's artifact, another process is writing it, or the disk is full or
            cannot be written.
    """
    if owner is not None:
        check_replaceable(out, owner)
    out = out.resolve()
    partial, key = (out.with_name(out.name + suffix) for suffix in (".partial", ".resume"))
    with disk_errors(partial), _only_writer(out):
        try:
            if resume is None or not partial.is_dir() or not key.is_file() or key.read_bytes() != resume.encode():
                _remove(partial)
                partial.mkdir()
                if resume is not None:
                    key.write_text(resume)
            if owner is not None:
                (partial / MARKER).write_text(owner + "\n")
            with disk_errors(partial, size_of(out)):
                yield partial
                for leftover in (*partial.glob(f"*{DAMAGED}"), *partial.glob(f"{UNFINISHED}*")):
                    leftover.unlink(missing_ok=True)
                (partial / PARTS).unlink(missing_ok=True)
            _replace(out, partial)
        finally:
            if resume is None or not (partial / PARTS).exists():
                _remove(partial)
                key.unlink(missing_ok=True)


def check_replaceable(out: Path, owner: str) -> None:
    """Refuse to write where something else stands.

    Raises:
        UserError: `out` is a file, a folder that this owner did not write, or lies within a file or another artifact.
    """
    for place in out.resolve().parents:
        if place.exists() and not place.is_dir():
            raise UserError(f"--out '{out}' lies within '{place}', which is a file: name another folder")
        if (place / MARKER).is_file():
            raise UserError(f"--out '{out}' lies within the artifact '{place}': name a folder outside of it")
    if not out.exists():
        return
    if not out.is_dir():
        raise UserError(f"--out '{out}' is a file: name a folder that does not exist yet")
    marker = out / MARKER
    found = marker.read_text(errors="replace").strip() if marker.is_file() else None
    if found != owner and any(out.iterdir()):
        holder = f"was written by {found}" if found else "holds files that no stage of this project wrote"
        raise UserError(f"--out '{out}' {holder}, not by {owner}: name another folder, or remove it yourself first")


@contextmanager
def part(path: Path) -> Iterator[Path]:
    """A file to write, which becomes `path` when the block succeeds: a finished part of work that may be cut short."""
    writing = path.with_name(path.name + ".writing")
    try:
        yield writing
        with (path.parent / PARTS).open("a") as notes:  # first, so that a part is never there without its note
            notes.write(f"{path.name} {fingerprint(writing)}\n")
        writing.rename(path)
    finally:
        writing.unlink(missing_ok=True)


def is_whole(path: Path, remedy: str = "it is made again") -> bool:
    """Whether a part is there as it was written; a damaged one is renamed and reported, with what is done about it."""
    if not path.is_file():
        return False
    notes = path.parent / PARTS
    if notes.is_file() and f"{path.name} {fingerprint(path)}" in notes.read_text(errors="replace").splitlines():
        return True
    aside = path.rename(path.with_name(path.name + DAMAGED))
    log.warning("%s is damaged (renamed to %s): %s", path, aside.name, remedy)
    return False


@contextmanager
def _only_writer(out: Path) -> Iterator[None]:
    """Hold the lock of a place. When `dvc` alone is killed its stage lives on, and a second one must not join it."""
    out.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(out.with_name(f".{out.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise UserError(
            f"another process is still writing '{out}' (a stage lives on when only `dvc` is killed): "
            "wait until it has ended, or end it, and run this again"
        ) from error
    try:
        yield
    finally:
        lock.release()


def _remove(path: Path) -> None:
    """Remove a folder or file, if it is there."""
    if path.is_file():
        path.unlink()
    shutil.rmtree(path, ignore_errors=True)


def _replace(out: Path, partial: Path) -> None:
    """Put the finished folder in place of the old one, which is renamed aside first: one of them always exists."""
    aside = out.with_name(out.name + ".replaced")
    _remove(aside)
    if out.exists():
        out.rename(aside)
    partial.rename(out)
    _remove(aside)


def fingerprint(*parts: str | bytes | Path) -> str:
    """A short hash of texts, bytes and the contents of files."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.read_bytes() if isinstance(part, Path) else part.encode() if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()[:16]


def code_fingerprint(*modules: str) -> str:
    """A hash of what some modules and everything of the project that they import do.

    Comments, docstrings and layout do not count, so that editing them makes no stage run again.
    """
    names = sorted(import_closure(*modules, stop=frozenset(NOT_FINGERPRINTED)))
    return fingerprint(*(f"{name} {_meaning(name)}" for name in names))


def import_closure(*modules: str, stop: frozenset[str] = frozenset()) -> set[str]:
    """The modules and every module of the project that they import, directly or not; `stop` is not entered."""
    seen: set[str] = set()
    pending = list(modules)
    while pending:
        name = pending.pop()
        if name not in seen and name not in stop:
            seen.add(name)
            pending.extend(imported_modules(name))
    return seen


@lru_cache
def imported_modules(module: str) -> frozenset[str]:
    """The modules of the project that a module names in import statements, anywhere but under TYPE_CHECKING."""
    found: set[str] = set()
    pending: list[ast.AST] = [ast.parse(source_of(module))]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        pending.extend(ast.iter_child_nodes(node))
    return frozenset(name for name in found if name.split(".")[0] in PACKAGES and _path(name) is not None)


def source_of(module: str) -> str:
    """The text of a module of this project."""
    path = _path(module)
    assert path is not None, module
    return path.read_text(encoding="utf-8")


def _path(module: str) -> Path | None:
    base = ROOT.joinpath(*module.split("."))
    return next((path for path in (base.with_suffix(".py"), base / "__init__.py") if path.is_file()), None)


@lru_cache
def _meaning(module: str) -> str:
    """A module's syntax tree as text, without docstrings. Empty fields are left out: Python versions differ in them."""
    return repr(_plain(ast.parse(source_of(module))))


def _plain(node: Any) -> Any:
    if isinstance(node, list):
        return [_plain(one) for one in node if not _is_docstring(one)]
    if not isinstance(node, ast.AST):
        return node
    fields = [(name, value) for name, value in ast.iter_fields(node) if name not in ("ctx", "kind", "type_comment")]
    return (
        type(node).__name__,
        *((name, _plain(value)) for name, value in fields if value is not None and value != []),
    )


def _is_docstring(node: Any) -> bool:
    """Whether a statement is a text that nothing uses: the docstring of a module, class, function or field."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def save_tensors(path: Path, tensors: dict[str, Tensor], description: dict[str, Any]) -> None:
    """Tensors and a JSON description in one safetensors file with reproducible bytes.

    Raises:
        UserError: the disk is full or cannot be written.
    """
    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    with disk_errors(path, sum(tensor.nbytes for tensor in plain.values())):
        try:
            save_file(plain, path, metadata={"description": json.dumps(description, sort_keys=True)})
        except SafetensorError as error:
            if "No space left" not in str(error):
                raise
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from error
    mask = os.umask(0)
    os.umask(mask)
    path.chmod(0o666 & ~mask)  # save_file makes files that only their owner can read


def load_tensors(
    path: Path, made_by: str, wanted: Callable[[str], bool] = lambda name: True
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and description as save_tensors wrote them; only the tensors with a wanted name are read.

    Raises:
        UserError: the file is missing or not readable; the sentence names the stage that makes it.
    """
    if not path.is_file():
        raise UserError(f"{path} does not exist: run the stage {made_by} first (`dvc repro {made_by}`)")
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys() if wanted(name)}
            description = json.loads(file.metadata()["description"])
        if not isinstance(description, dict):
            raise ValueError("its description is no mapping")
        return tensors, description
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path} is not a readable artifact ({error}): delete it and run the stage {made_by} again"
        ) from error


def load_explanation(
    path: Path, made_by: str, model: str, data: str | None = None, wanted: Callable[[str], bool] = lambda name: True
) -> dict[str, Tensor]:
    """The tensors of an explanation, whose description names the model that it explains and the data it is made from.

    Raises:
        UserError: the file is missing or not readable, or explains a model or data with another fingerprint.
    """
    tensors, description = load_tensors(path, made_by, wanted)
    if description.get("model") != model:
        raise UserError(
            f"{path} was made for another model ({description.get('model')}, not {model}): "
            f"run the stage {made_by} again"
        )
    if data is not None and description.get("data") != data:
        raise UserError(
            f"{path} was made from other data ({description.get('data')}, not {data}): run the stage {made_by} again"
        )
    return tensors


def write_json(path: Path, value: Any) -> None:
    """Indented JSON with sorted keys."""
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def read_json(path: Path, made_by: str, *keys: str, kind: type = dict) -> Any:
    """A value as write_json wrote it.

    Args:
        path: The file.
        made_by: The stage that writes it.
        keys: Keys that must be there.
        kind: What the value is: dict or list.

    Raises:
        UserError: the file is missing or damaged; the sentence names the stage that makes it.
    """
    again = f"delete it and run the stage {made_by} again"
    if not path.is_file():
        raise UserError(f"{path} does not exist: run the stage {made_by} first (`dvc repro {made_by}`)")
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged ({error}): {again}") from error
    if not isinstance(value, kind) or (missing := [key for key in keys if key not in value]):
        lack = f"the key '{missing[0]}'" if isinstance(value, kind) else f"a JSON {kind.__name__}"
        raise UserError(f"{path} is damaged (it lacks {lack}): {again}")
    return value
