"""Shifted test splits. Only evaluation may import this module (a test sees to it)."""

from collections.abc import Iterator
from pathlib import Path

from everycause.data.corruptions import corrupted, kept_on_disk
from everycause.data.sources import DataParams, open_split, reader
from everycause.data.split import View

__all__ = ["View", "test_view", "views"]


def views(
    params: DataParams, corruptions: list[str], severities: list[int], threads: int, cache: Path | None = None
) -> Iterator[View]:
    """The test split first, then every shifted one.

    Args:
        params: The data set.
        corruptions: Names from data.corruptions.
        severities: From 1 to 5; every corruption is shown at each.
        threads: Number of threads that read images.
        cache: Folder in which images rendered or corrupted here are kept for the next evaluation; None keeps nothing.

    Raises:
        UserError: the data folder is not as it should be.
    """
    source, root, test = reader(params.source), Path(params.root), test_view(params, threads)
    held = test.split.kept_in_memory(params.memory_mib)
    yield test._replace(split=held)
    if hasattr(source, "shifted_views"):
        for view in source.shifted_views(root, params.section, threads):
            kept = cache is not None and params.code is not None  # rendering takes as long as evaluating
            yield view._replace(split=kept_on_disk(view.split, cache)) if kept else view
    for corruption in corruptions:
        for severity in severities:
            released = None
            if hasattr(source, "released_view"):
                released = source.released_view(root, corruption, severity, params.section, threads)
            yield released or View(corrupted(held, corruption, severity, cache))


def test_view(params: DataParams, threads: int) -> View:
    """The test split with what else is known of its images.

    Raises:
        UserError: the data folder is not as it should be.
    """
    source = reader(params.source)
    if hasattr(source, "test_view"):
        return source.test_view(Path(params.root), params.section, threads)
    return View(open_split(params, "test", threads))
