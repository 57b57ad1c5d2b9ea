"""docs: README, docs/, the reports and the docstrings as a site of plain HTML (`make docs`).

Reads   README.md, CONTRIBUTING.md, CHANGELOG.md, docs/, the pages and pictures of reports/, the sources (not imported).
Writes  OUT, a folder that any web server serves; OUT/index.html is the README.
Paper   none.  Cost: about 30 s.
"""

import shutil
from pathlib import Path

from mkdocs.commands.build import build
from mkdocs.config import load_config
from mkdocs.exceptions import Abort, MkDocsException

from everycause.artifacts import atomic_folder
from everycause.errors import UserError
from stages.entry import run

PAGES = ("CONTRIBUTING.md", "CHANGELOG.md", "LICENSE", "CITATION.cff", "params.yaml", "data/README.md")
PACKAGES = ("codebirds", "everycause")


def main(root: Path = Path("."), out: Path = Path("site")) -> None:
    """Build the site.

    Args:
        root: Folder of the repository.
        out: Folder to write.
    """
    if not (root / "mkdocs.yml").is_file():
        raise UserError(f"'{root.resolve()}' has no mkdocs.yml: run this in the folder of the repository")
    with atomic_folder(out, "docs") as folder:
        source = folder / "source"
        gathered(root, source)
        config = load_config(
            str(root / "mkdocs.yml"), docs_dir=str(source.resolve()), site_dir=str((folder / "site").resolve())
        )
        config["nav"] = navigation(source)
        try:
            build(config)
        except (Abort, MkDocsException) as error:
            raise UserError(f"the site cannot be built ({error}): mend the page that is named above") from error
        shutil.rmtree(source)
        for part in (folder / "site").iterdir():
            part.rename(folder / part.name)
        (folder / "site").rmdir()


def gathered(root: Path, source: Path) -> None:
    """Copy all pages to one folder, in which their links hold, and write a page for each module of the packages."""
    source.mkdir()
    shutil.copy(root / "README.md", source / "index.md")
    source.joinpath("data").mkdir()
    for name in PAGES:
        shutil.copy(root / name, source / name)
    for name in ("docs", "profiles"):
        shutil.copytree(root / name, source / name)
    left_out = shutil.ignore_patterns("run", "rows", "gallery", "trials.csv")
    shutil.copytree(root / "reports", source / "reports", ignore=left_out)
    shutil.copytree(root / "notebooks", source / "notebooks")
    for package in PACKAGES:
        for file in sorted((root / package).rglob("*.py")):
            name = ".".join(file.relative_to(root).with_suffix("").parts).removesuffix(".__init__")
            if not name.endswith("__main__"):
                page = source / "reference" / f"{name}.md"
                page.parent.mkdir(exist_ok=True)
                page.write_text(f"# {name}\n\n::: {name}\n", encoding="utf-8")


def navigation(source: Path) -> list[dict[str, object]]:
    """The pages by topic; pages of the reference by package."""

    def pages(folder: str) -> list[str]:
        return [file.relative_to(source).as_posix() for file in sorted((source / folder).rglob("*.md"))]

    return [
        {"everycause": "index.md"},
        {"Guide": pages("docs")},
        {"Reports": pages("reports")},
        {"Reference": [{Path(page).stem: page} for page in pages("reference")]},
        {"Project": ["CONTRIBUTING.md", "CHANGELOG.md"]},
    ]


if __name__ == "__main__":
    run(main)
