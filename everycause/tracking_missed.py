"""What MLflow missed while it could not be reached: noted on disk, a file for each run, until it is sent.

The first line of a file says which run it is, each further one what happened in it: measures of a step, tags, a folder
to attach, the end. MLflow stores what it gets twice only once, so a run is sent as a whole.
"""

import json
import logging
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

from everycause import tracking_store as store
from everycause.artifacts import HISTORY
from everycause.errors import UserError
from everycause.processes import is_dead

if TYPE_CHECKING:
    from mlflow import MlflowClient

log = logging.getLogger(__name__)


class Journal:
    """What one run records: in memory, and from the first call that MLflow did not answer on also in a file."""

    def __init__(self, folder: Path, about: dict[str, Any]) -> None:
        self.about = {"began": int(time.time() * 1000), "run": None, **about}
        """Experiment, name, tags and parameters, begin in ms since 1970, and MLflow's id if it has the run."""
        self.entries: list[tuple[str, Any]] = []
        """What happened, in order: its kind, and its content."""
        self.file = folder / f"{self.about['began']}-{uuid.uuid4().hex[:8]}.jsonl"
        self._kept = False

    def add(self, kind: str, content: Any) -> None:
        """Note what happened."""
        self.entries.append((kind, content))
        if self._kept:
            self._write("a", [(kind, content)])

    def keep(self) -> None:
        """Write everything into the file, and from now on everything that comes."""
        self._kept = True
        self._write("w", [("about", self.about), *self.entries])

    def contents(self, kind: str) -> list[Any]:
        """What happened of one kind."""
        return [content for one, content in self.entries if one == kind]

    def _write(self, mode: str, lines: list[tuple[str, Any]]) -> None:
        """Write lines; where that fails the run goes on, and MLflow never gets it."""
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            with self.file.open(mode, encoding="utf-8") as file:
                file.writelines(json.dumps(line, default=str) + "\n" for line in lines)
        except OSError as error:
            log.warning("what MLflow missed cannot be noted in '%s' (%s)", self.file, error)


class Trail:
    """The MLflow run of an unfinished artifact, and when each of its steps was recorded.

    A process that goes on with the artifact goes on with the run. What it records once more gets the time that it had,
    so that MLflow stores it once.
    """

    def __init__(self, file: Path | None) -> None:
        self._file = file
        self.run: str | None = None
        """MLflow's id of the run, if an earlier process began it."""
        self._note: Path | None = None
        self._times: dict[str, int] = {}
        if file is not None and file.is_file():
            self._read(file.read_text(encoding="utf-8", errors="replace").rpartition("\n")[0])

    def go_on(self, journal: Journal) -> None:
        """Note the run; what an earlier process noted for later goes, since this one records all of it again."""
        if self._note is not None and self._note != journal.file:
            self._note.unlink(missing_ok=True)
        self._write("run", journal.about["run"], str(journal.file))

    def time_of(self, step: int, measures: dict[str, float]) -> int:
        """When these measures were recorded first, in ms since 1970: now, unless an earlier process recorded them."""
        line = history_line(step, measures)
        if line not in self._times:
            self._times[line] = int(time.time() * 1000)
            self._write("time", self._times[line], line)
        return self._times[line]

    def _read(self, text: str) -> None:
        """What earlier processes noted; nothing of lines that a crash damaged."""
        for line in text.splitlines():
            try:
                kind, content, of = json.loads(line)
            except (ValueError, TypeError):
                continue
            if kind == "run":
                self.run, self._note = content, Path(of)
            else:
                self._times[of] = content

    def _write(self, *line: Any) -> None:
        if self._file is not None:
            with self._file.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")


def missed(folder: Path) -> tuple[list[Journal], list[Journal]]:
    """The runs that MLflow has not got: those that have ended, oldest first, and those that still run.

    Raises:
        UserError: a file is damaged.
    """
    journals = [_read(file) for file in sorted(folder.glob("*.jsonl"))]
    ended = [one for one in journals if one.contents("end") or is_dead(json.loads(one.about["tags"][store.PROCESS]))]
    return ended, [one for one in journals if one not in ended]


def _read(file: Path) -> Journal:
    """A run as it was noted; a last line that a killed process did not finish is left out.

    Raises:
        UserError: another line is damaged.
    """
    try:
        whole = file.read_text(encoding="utf-8").rpartition("\n")[0]
        (_, about), *entries = [json.loads(line) for line in whole.splitlines()]
        journal = Journal(file.parent, about)
        journal.entries = [(kind, content) for kind, content in entries]
        json.loads(journal.about["tags"][store.PROCESS])
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{file} is damaged ({error}): delete it and run this again") from error
    journal.file = file
    return journal


def send(client: "MlflowClient", experiment: str, journal: Journal, parents: dict[str, str]) -> None:
    """Send a run as a whole, and delete its file.

    Args:
        client: The store.
        experiment: Id of the experiment in it.
        journal: The run.
        parents: Study → id of its run, of the studies sent so far: their trials belong to them.
    """
    about, tags = journal.about, journal.about["tags"]
    study, is_trial = tags.get("study"), "trial" in tags
    if is_trial and study in parents:
        tags = {store.PARENT: parents[study], **tags}
    run = store.begin(client, experiment, about["name"], tags, about["began"], about["run"])
    if study is not None and not is_trial:
        parents[study] = run
    if about["run"] != run:  # a second attempt goes on with it
        about["run"] = run
        journal.keep()
    store.log_params(client, run, about["logged"])
    points = journal.contents("measures")
    store.log_metrics(client, run, points)
    found = {name: value for tags in journal.contents("tags") for name, value in tags.items()}
    store.set_tags(client, run, {store.STATE: "recorded later", **found})
    for folder in map(Path, journal.contents("files")):
        if folder.is_dir() and _is_of(folder, points):
            store.attach(client, run, folder)
    ended, status = (journal.contents("end") or [(None, "KILLED")])[-1]
    client.set_terminated(run, status, ended)
    journal.file.unlink()


def _is_of(folder: Path, points: list[Any]) -> bool:
    """Whether a folder holds what a run wrote: a later run may have replaced it."""
    history = folder / HISTORY
    lines = [history_line(step, measures) for _, step, measures in points]
    return not history.is_file() or history.read_text(encoding="utf-8") == "".join(lines)


def history_line(step: int, measures: dict[str, float]) -> str:
    """A step's measures as a line of history.jsonl."""
    return json.dumps({"step": step, **measures}, sort_keys=True) + "\n"
