"""The modules of the project, as the tests of its structure see them."""

import ast
from pathlib import Path

from everycause.artifacts import PACKAGES, source_of

ROOT = Path(__file__).parents[1]


def modules_of(package: str) -> list[str]:
    """Every module of a package but its __init__ files, in order."""
    paths = (path for path in (ROOT / package).rglob("*.py") if path.name != "__init__.py")
    return sorted(".".join(path.relative_to(ROOT).with_suffix("").parts) for path in paths)


MODULES = [module for package in PACKAGES if package != "stages" for module in modules_of(package)]
STAGES = [module.removeprefix("stages.") for module in modules_of("stages")]


def tree_of(module: str) -> ast.Module:
    """A module's syntax tree."""
    return ast.parse(source_of(module))


def libraries(module: str) -> set[str]:
    """The top-level packages that a module imports anywhere, also inside functions and under TYPE_CHECKING."""
    nodes = list(ast.walk(tree_of(module)))
    named = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    named |= {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module}
    return {name.split(".")[0] for name in named}
