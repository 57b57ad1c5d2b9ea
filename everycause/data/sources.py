"""The data set that params.yaml names: its params, its training, validation and test split, its files.

Every data source has a reader, a module that is imported only when params.yaml names it. To add one, write a module
with

    PARAMS                                   the class of its section of params.yaml, with a field `image_size`
                                             (of photographs a split.PhotographParams: pretrained networks frame them)
    open_split(root, name, params, threads)  the Split `train`, `validation` or `test` of the folder data.root
    files(root, params)                      every image file of any split, shifted ones too; each is checked and hashed

and, where there is something to tell, tables (other files that splits are made from: they are hashed), test_view (the
test split as a View), shifted_views (the shifted test sets), released_view (a published corrupted test set) and groups
(the group of each image of a split); folder.py, imagenet.py and codebirds.py are examples. Then name it in SOURCES: its
section is checked, and every stage can use it. Shifted splits are opened in data.shifts alone, which only evaluation
may import.
"""

from collections.abc import Iterable
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, get_args

from pydantic import ConfigDict, Field, create_model, field_validator, model_validator
from pydantic_core import PydanticCustomError
from torch import Tensor

from codebirds.codes import Code
from everycause.artifacts import code_fingerprint
from everycause.data.digests import remembered
from everycause.data.images import Framing, check_decodable
from everycause.data.split import PhotographParams, Split
from everycause.errors import UserError
from everycause.params import Section
from everycause.shapes import Int64

SplitName = Literal["train", "validation", "test"]
SOURCES = {
    "codebirds": "everycause.data.codebirds",
    "folder": "everycause.data.folder",
    "cub": "everycause.data.cub",
    "imagenet": "everycause.data.imagenet",
    "waterbirds": "everycause.data.waterbirds",
    "imagenet_samples": "everycause.data.imagenet_samples",
}
"""Name of data.source → module that reads it."""
DVC_COPIES = "/.dvc/tmp/exps/"
"""Where `dvc exp run --temp` and `--queue` put their copies of the repository."""


class DataParams(Section):
    """Which images; the section named like the source says how they are read.

    Sections of other sources may stand beside it. They are checked and then dropped, so that nothing depends on them.
    """

    model_config = ConfigDict(extra="allow")

    source: str
    """`codebirds` renders images, `folder` reads your own photographs, the others read published data sets."""
    root: str = Field(min_length=1)
    """The data folder: root/split/class/image of your own photographs, or the folder of a published data set."""
    memory_mib: int = Field(ge=0, le=2**20)
    """A split that fits into this many MiB is read once and kept; a larger one is read again in every epoch."""

    @model_validator(mode="before")
    @classmethod
    def _read_sections(cls, raw: Any) -> Any:
        """Check the sections of all sources and keep that of the source; unknown keys are errors."""
        if not isinstance(raw, dict) or raw.get("source") not in list(SOURCES):
            return raw
        beside = {key: value for key, value in raw.items() if key not in cls.model_fields}
        classes = {name: (reader(name).PARAMS, ...) for name in SOURCES if name in beside or name == raw["source"]}
        sections = create_model("Sections", __base__=Section, **classes)(**beside)
        own = {key: value for key, value in raw.items() if key in cls.model_fields}
        return own | {raw["source"]: getattr(sections, raw["source"])}

    @field_validator("source")
    @classmethod
    def _is_known(cls, source: str) -> str:
        if source not in SOURCES:
            known = ", ".join(f"'{name}'" for name in SOURCES)
            raise PydanticCustomError("literal_error", "Input should be one of {known}", {"known": known})
        return source

    def __getattr__(self, name: str) -> Any:
        """The section of a source, or None if the images come from another one."""
        if name in SOURCES:
            return (self.__pydantic_extra__ or {}).get(name)
        return super().__getattr__(name)  # type: ignore[misc]

    @property
    def section(self) -> Any:
        """The section of the source."""
        return getattr(self, self.source)

    def seen_by(self, framing: Framing | None) -> "DataParams":
        """The same data for a network that wants photographs cut so; rendered images are what they are."""
        if framing is None or not isinstance(self.section, PhotographParams):
            return self
        return self.model_copy(update={self.source: self.section.framed(framing)})

    @property
    def code(self) -> Code | None:
        """The code whose words are the classes; None unless the images are those of Codebirds."""
        return getattr(self.section, "code", None)

    @property
    def image_size(self) -> int:
        """Side of the square images, in pixels."""
        return self.section.image_size


def reader(source: str) -> ModuleType:
    """The module that reads a data source."""
    return import_module(SOURCES[source])


def open_split(params: DataParams, name: SplitName, threads: int) -> Split:
    """A split of the training distribution.

    Raises:
        UserError: the data folder is not as it should be.
    """
    split = reader(params.source).open_split(Path(params.root), name, params.section, threads)
    return split.kept_in_memory(params.memory_mib)


def has_groups(params: DataParams) -> bool:
    """Whether the data set names the groups of its images."""
    return hasattr(reader(params.source), "groups")


def groups(params: DataParams, name: SplitName) -> Int64[Tensor, "images"]:
    """The group of each image of a split: its class together with the scene, or the place, that it is shown in.

    Raises:
        UserError: the data set names no groups.
    """
    if not has_groups(params):
        raise UserError(f"data.source is '{params.source}', whose images have no known groups: use codebirds")
    return reader(params.source).groups(Path(params.root), name, params.section)


def class_names(params: DataParams, threads: int) -> tuple[str, ...]:
    """The classes, in the order of the logits; no image is decoded.

    Raises:
        UserError: the data folder is not as it should be.
    """
    return open_split(params.model_copy(update={"memory_mib": 0}), "test", threads).class_names


def files(params: DataParams) -> list[Path]:
    """Every file that any split is made from, shifted ones too: what is hashed is what is read.

    Raises:
        UserError: the data folder is not as it should be.
    """
    source, root = reader(params.source), Path(params.root)
    tables = source.tables(root, params.section) if hasattr(source, "tables") else []
    return [*tables, *source.files(root, params.section)]


def check(params: DataParams, threads: int, corrupted: Iterable[tuple[str, int]] = ()) -> None:
    """Refuse data that could not be used to the end: every split is listed and every image opened before any work.

    Whole files are remembered, so that the next check opens only files that changed.

    Args:
        params: The data set.
        threads: Number of threads that read images.
        corrupted: The corruptions and severities that will be evaluated; a published set of them must have them all.

    Raises:
        UserError: the data folder is not as it should be, or a file of any split is no whole image.
    """
    try:
        images = _listed(params, threads, corrupted)
    except UserError as error:
        if DVC_COPIES in Path.cwd().as_posix() and not Path(params.root).is_absolute():
            raise UserError(
                f"{error} (`dvc exp run --temp` and `--queue` work in a copy of the repository without the files that "
                f"neither Git nor DVC tracks: make data.root the absolute path of your '{params.root}')"
            ) from error
        raise
    question = f"image {code_fingerprint('everycause.data.images')}"
    found = remembered(question, images, _fault, threads, lasting=lambda fault: not fault)
    if faults := [fault for fault in found if fault]:
        more = f" ({len(faults) - 1} more files cannot be read either)" if len(faults) > 1 else ""
        raise UserError(faults[0] + more)


def _listed(params: DataParams, threads: int, corrupted: Iterable[tuple[str, int]]) -> list[Path]:
    """Every image file; all splits are listed and hashed, and nothing is decoded."""
    source, root = reader(params.source), Path(params.root)
    for name in get_args(SplitName):
        source.open_split(root, name, params.section, threads)
    if hasattr(source, "released_view"):
        for corruption, severity in corrupted:
            source.released_view(root, corruption, severity, params.section, threads)
    return source.files(root, params.section)


def _fault(file: Path) -> str:
    """What is wrong with an image file, as a sentence; empty if nothing is."""
    try:
        check_decodable(file)
    except UserError as error:
        return str(error)
    return ""


def renderer(params: DataParams, threads: int) -> Any:
    """The codebirds.birds.Codebirds of rendered images: it draws the pixels of their parts, and them without birds.

    Raises:
        UserError: the images are photographs, of which this is not known.
    """
    if params.code is None:
        raise UserError(f"data.source is '{params.source}', and only rendered images have known parts: use codebirds")
    return reader(params.source).renderer(Path(params.root), params.section, threads)
