"""The package installs: what the wheel holds, what it needs, and that it explains an image with nothing more."""

import ast
import email
import os
import re
import shutil
import subprocess
import sys
import zipfile
from email.message import Message
from importlib.metadata import packages_distributions, requires
from pathlib import Path

import numpy as np
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from PIL import Image

import everycause
from tests.conftest import ROOT

PACKAGES = ("codebirds", "everycause", "stages")
BASE = {"torch", "torchvision", "timm", "numpy"}
COMES_WITH = {"huggingface-hub": "timm", "sqlalchemy": "optuna"}
"""Libraries that are imported here but declared by another one that cannot work without them."""
BLOCKED = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {names!r}:
            raise ModuleNotFoundError(f"{{name}} is blocked: it is no base dependency")

sys.meta_path.insert(0, Blocked())
"""
"""Makes every distribution but the base dependencies look absent."""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built without a network from a copy of everything that could slip into it."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in (*PACKAGES, "tests", "benchmarks", "docs", "profiles"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    built = subprocess.run([*command, "-w", str(out), str(source)], capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    (found,) = out.glob("everycause-*.whl")
    return found


@pytest.fixture(scope="module")
def metadata(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return email.message_from_bytes(archive.read(name))


def requirements_of(metadata: Message, extra: str) -> dict[str, Requirement]:
    """The requirements that an extra brings in; "" for those of the package itself."""
    listed = [Requirement(line) for line in metadata.get_all("Requires-Dist")]
    asked = [one for one in listed if one.marker is None or (extra and one.marker.evaluate({"extra": extra}))]
    return {canonicalize_name(one.name): one for one in asked if extra == "" or one.marker is not None}


def test_the_wheel_holds_every_module_of_the_packages_and_no_tests(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    modules = {str(path.relative_to(ROOT)) for package in PACKAGES for path in (ROOT / package).rglob("*.py")}
    assert {name for name in names if ".dist-info/" not in name} == modules
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)


def test_the_package_needs_four_libraries_and_names_the_rest_as_extras(metadata: Message) -> None:
    assert set(requirements_of(metadata, "")) == BASE
    assert set(metadata.get_all("Provides-Extra")) == {"pipeline", "test"}
    assert metadata["Version"] == everycause.__version__ and metadata["License-Expression"] == "Apache-2.0"


def test_every_library_that_the_packages_import_is_declared(metadata: Message) -> None:
    declared = set(requirements_of(metadata, "")) | set(requirements_of(metadata, "pipeline")) | set(COMES_WITH)
    for brought, owner in COMES_WITH.items():
        assert brought in {canonicalize_name(Requirement(line).name) for line in requires(owner)}
    owners, local = packages_distributions(), {*PACKAGES, *sys.stdlib_module_names}
    for path in (path for package in PACKAGES for path in (ROOT / package).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and node.module and not node.level else []
            for top in {name.split(".")[0] for name in names} - local:
                known = {canonicalize_name(owner) for owner in owners.get(top, [])}
                assert known & declared, f"{path} imports {top}"


def test_what_requirements_txt_installs_satisfies_every_bound(metadata: Message) -> None:
    lines = [line.split("#")[0].strip() for line in (ROOT / "requirements.txt").read_text().splitlines()]
    pinned = {canonicalize_name(one.name): one for one in map(Requirement, filter(None, lines))}
    for extra in ("", "pipeline", "test"):
        for name, wanted in requirements_of(metadata, extra).items():
            if name != "everycause":
                lowest = [one.version.removesuffix(".*") for one in pinned[name].specifier] or ["0"]
                assert not wanted.specifier or wanted.specifier.contains(*lowest), f"{name}: {wanted}, {lowest}"


def undeclared_names() -> set[str]:
    """Top-level modules of every installed distribution that the base dependencies do not bring in."""
    wanted, allowed = set(BASE), set()
    while wanted:
        name = canonicalize_name(wanted.pop())
        allowed.add(name)
        try:
            needed = [Requirement(line) for line in requires(name) or []]
        except ModuleNotFoundError:
            continue
        active = {canonicalize_name(one.name) for one in needed if not one.marker or one.marker.evaluate({"extra": ""})}
        wanted |= active - allowed
    owners = packages_distributions().items()
    return {top for top, names in owners if not {canonicalize_name(name) for name in names} & allowed} - {*PACKAGES}


def test_the_wheel_runs_the_readme_with_the_base_dependencies_alone(wheel: Path, tmp_path: Path) -> None:
    installed, elsewhere = tmp_path / "installed", tmp_path / "elsewhere"
    zipfile.ZipFile(wheel).extractall(installed)
    elsewhere.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (160, 200, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(elsewhere / "photo.jpg")
    (block,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    names = undeclared_names()
    assert {"pydantic", "skimage", "mlflow", "matplotlib", "scipy"} <= names
    checked = f"{block}\nassert everycause.__file__.startswith({str(installed)!r}), everycause.__file__\n"
    code = BLOCKED.format(names=names) + checked
    environment = os.environ | {"PYTHONPATH": str(installed), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=elsewhere, env=environment, capture_output=True, text=True, timeout=300
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() and Image.open(elsewhere / "explanation.png").size > (0, 0)


def test_the_citation_names_this_version_and_what_the_format_requires() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= set(citation)
    assert citation["cff-version"] == "1.2.0" and str(citation["version"]) == everycause.__version__
    assert citation["license"] == "Apache-2.0" and citation["authors"] == [{"name": "The everycause developers"}]
