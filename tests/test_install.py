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
from importlib.metadata import PackageNotFoundError, distribution, packages_distributions, requires
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
COMES_WITH = {"huggingface-hub": "timm", "pydantic-core": "pydantic", "sqlalchemy": "optuna", "markupsafe": "jinja2"}
"""Libraries that are imported here but declared by another one that cannot work without them."""


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
    paths = [path for package in PACKAGES for kind in ("py", "j2") for path in (ROOT / package).rglob(f"*.{kind}")]
    modules = {str(path.relative_to(ROOT)) for path in paths}
    assert {name for name in names if ".dist-info/" not in name} == modules
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)


def test_the_package_needs_four_libraries_and_names_the_rest_as_extras(metadata: Message) -> None:
    assert set(requirements_of(metadata, "")) == BASE
    assert set(metadata.get_all("Provides-Extra")) == {"pipeline", "photographs", "docs", "test"}
    assert metadata["Version"] == everycause.__version__ and metadata["License-Expression"] == "Apache-2.0"


def test_every_library_that_the_packages_import_is_declared(metadata: Message) -> None:
    declared = set(requirements_of(metadata, "")) | set(requirements_of(metadata, "pipeline")) | set(COMES_WITH)
    declared |= set(requirements_of(metadata, "photographs")) | set(requirements_of(metadata, "docs"))
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


def link_base_dependencies(folder: Path) -> None:
    """Link what `pip install` would bring with the base dependencies, and nothing else, into an empty folder."""
    wanted, seen = set(BASE), set()
    while wanted:
        name = wanted.pop()
        seen.add(name)
        try:
            installed = distribution(name)
        except PackageNotFoundError:  # declared for another platform or another Python
            continue
        needed = [Requirement(line) for line in installed.requires or []]
        active = {canonicalize_name(one.name) for one in needed if not one.marker or one.marker.evaluate({"extra": ""})}
        wanted |= active - seen
        for top in {file.parts[0] for file in installed.files or []} - {"..", "__pycache__"}:
            link = folder / top
            if not link.exists():
                link.symlink_to(Path(str(installed.locate_file(top))))


def test_the_wheel_explains_an_image_as_the_readme_does_with_the_base_dependencies_alone(
    wheel: Path, tmp_path: Path
) -> None:
    installed, elsewhere = tmp_path / "installed", tmp_path / "elsewhere"
    zipfile.ZipFile(wheel).extractall(installed)
    elsewhere.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (160, 200, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(elsewhere / "photo.jpg")
    (block,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    *explaining, drawing = block.splitlines()  # only drawing may need matplotlib
    assert "everycause.explain(" in "".join(explaining) and drawing.startswith("explanation.plot(")
    dependencies = tmp_path / "dependencies"
    dependencies.mkdir()
    link_base_dependencies(dependencies)
    absent = {"pydantic", "skimage", "mlflow", "matplotlib", "scipy", "pandas", "jaxtyping"}
    assert (dependencies / "torch").is_dir() and not absent & {path.name for path in dependencies.iterdir()}
    checked = [f"assert everycause.__file__.startswith({str(installed)!r}), everycause.__file__"]
    code = "\n".join([*explaining, *checked])
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join([str(installed), str(dependencies)])
    run = subprocess.run(
        [sys.executable, "-S", "-c", code], cwd=elsewhere, env=environment, capture_output=True, text=True, timeout=300
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith("[")


def test_the_citation_names_this_version_and_what_the_format_requires() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= set(citation)
    assert citation["cff-version"] == "1.2.0" and str(citation["version"]) == everycause.__version__
    assert citation["license"] == "Apache-2.0" and citation["authors"] == [{"name": "The everycause developers"}]
