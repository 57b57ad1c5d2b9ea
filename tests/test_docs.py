"""The site of `make docs`: every link holds, every module has a page."""

import re
import shutil
from pathlib import Path

import pytest

from everycause.errors import UserError
from stages import docs
from tests.imports import ROOT


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A repository with one page and two modules."""
    root = tmp_path / "root"
    for name in ("docs", "profiles", "reports", "notebooks", "data", "codebirds", "everycause"):
        (root / name).mkdir(parents=True)
    for name in ("README.md", *docs.PAGES):
        (root / name).write_text("# Title\n\n[a page](docs/one.md)\n" if name == "README.md" else "# Text\n")
    (root / "docs" / "one.md").write_text("# One\n\n[back](../README.md)\n".replace("../README.md", "../index.md"))
    (root / "codebirds" / "__init__.py").write_text('"""Birds."""\n')
    (root / "everycause" / "errors.py").write_text(
        '"""Errors."""\n\n\ndef plain() -> None:\n    """A plain thing."""\n'
    )
    shutil.copy(ROOT / "mkdocs.yml", root)
    return root


def test_the_site_of_this_repository_has_no_broken_link_and_a_page_for_each_module(tmp_path: Path) -> None:
    docs.main(ROOT, tmp_path / "site")
    made = {file.stem for file in (tmp_path / "site" / "reference").glob("*.html")}
    assert {"everycause.explainer", "everycause.training.rows", "codebirds.birds"} <= made
    text = (tmp_path / "site" / "reference" / "everycause.explainer.html").read_text()
    assert "Whether a set was found whose removal changes the prediction." in text
    assert (tmp_path / "site" / "index.html").is_file() and not (tmp_path / "site" / "source").exists()
    loaded = re.findall(r'<(?:script|link|img)[^>]+(?:src|href)="(https?://[^"]+)"', text)
    assert not loaded, "a page loads something from the network"


def test_a_broken_link_stops_the_site_and_leaves_nothing(small: Path, tmp_path: Path) -> None:
    docs.main(small, tmp_path / "site")
    assert (tmp_path / "site" / "reference" / "everycause.errors.html").is_file()
    shutil.rmtree(tmp_path / "site")
    (small / "docs" / "one.md").write_text("# One\n\n[gone](two.md)\n")
    with pytest.raises(UserError, match="the site cannot be built"):
        docs.main(small, tmp_path / "site")
    assert not (tmp_path / "site").exists()


def test_a_folder_without_the_site_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no mkdocs.yml: run this in the folder of the repository"):
        docs.main(tmp_path, tmp_path / "site")
