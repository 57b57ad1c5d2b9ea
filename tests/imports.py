"""Which modules of the project a module imports, read from the source."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1]
NOT_DEPENDENCIES = {
    "everycause.params",  # a validator: it can stop a stage but not change what it writes
    "everycause.tracking",  # a window: nothing it does reaches an artifact but history.jsonl, which it only appends to
    "stages.entry",  # command line, tags and renaming
    "stages",
    "everycause",
}


def path_of(module: str) -> Path | None:
    """The file of a module of this project."""
    base = ROOT.joinpath(*module.split("."))
    for candidate in (base.with_suffix(".py"), base / "__init__.py"):
        if candidate.is_file():
            return candidate
    return None


def imported(module: str) -> set[str]:
    """The project's modules that this one names in import statements, anywhere in it but under TYPE_CHECKING."""
    path = path_of(module)
    assert path is not None, module
    found: set[str] = set()
    pending: list[ast.AST] = [ast.parse(path.read_text())]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        pending.extend(ast.iter_child_nodes(node))
    return {
        name
        for name in found
        if name.split(".")[0] in ("everycause", "stages", "tests", "benchmarks") and path_of(name) is not None
    }


def closure(module: str, stop: frozenset[str] = frozenset()) -> set[str]:
    """The module and everything of the project that it imports, directly or not; `stop` is neither entered nor counted."""
    seen: set[str] = set()
    pending = [module]
    while pending:
        name = pending.pop()
        if name not in seen and name not in stop:
            seen.add(name)
            pending.extend(imported(name))
    return seen


def dependencies(stage: str) -> list[str]:
    """The source files that a stage's artifacts depend on, as dvc.yaml lists them."""
    modules = closure(f"stages.{stage}", frozenset(NOT_DEPENDENCIES))
    files = [path.relative_to(ROOT).as_posix() for module in modules if (path := path_of(module)) is not None]
    return sorted(file for file in files if not file.endswith("__init__.py"))
