"""readme: put the generated table between the markers of README.md (`make readme`)."""

from pathlib import Path

from everycause.errors import UserError
from stages.entry import run, written

BEGIN, END = "<!-- table: begin (make readme) -->", "<!-- table: end -->"


def with_table(text: str, table: str) -> str:
    """The text with the table between its markers.

    Raises:
        UserError: the markers are missing.
    """
    if BEGIN not in text or END not in text:
        raise UserError(f"README.md lacks the markers '{BEGIN}' and '{END}'")
    before, rest = text.split(BEGIN)
    return before + BEGIN + "\n" + table.strip() + "\n" + END + rest.split(END)[1]


def main(readme: Path = Path("README.md"), table: Path = Path("reports/study/readme_table.md")) -> None:
    """Insert the table.

    Args:
        readme: File to change.
        table: The generated table.
    """
    if not table.is_file():
        raise UserError(f"{table} does not exist: run `make study` first")
    written(readme, with_table(readme.read_text(), table.read_text()))


if __name__ == "__main__":
    run(main)
