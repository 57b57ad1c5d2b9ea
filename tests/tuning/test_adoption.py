from pathlib import Path

import pytest
import yaml

from everycause.params import flattened, read
from everycause.tuning.report import adopt, replaced
from everycause.tuning.space import nested
from stages import adopt as adopt_stage
from tests.conftest import ROOT


@pytest.fixture
def params(tmp_path: Path) -> Path:
    path = tmp_path / "params.yaml"
    path.write_text((ROOT / "params.yaml").read_text())
    return path


def proposed(folder: Path, values: dict) -> Path:
    path = folder / "best_params.yaml"
    path.write_text("# by a rule\n" + yaml.safe_dump(nested(values)))
    return path


def test_only_the_lines_of_the_proposed_values_change(params: Path, tmp_path: Path) -> None:
    values = {
        "loss.lambda_mc": 3.49e-05,
        "filters.heads.sparsity": 4.0,
        "background.source": "own",
        "masks.regions": 64,
        "model.pretrained": True,
    }
    before = params.read_text().splitlines()
    changed = adopt(proposed(tmp_path, values), params)
    after = params.read_text().splitlines()
    assert {path: now for path, (_, now) in changed.items()} == values
    differing = [(old, new) for old, new in zip(before, after, strict=True) if old != new]
    assert len(differing) == len(values)
    for old, new in differing:  # key, comment and the comment's column stay
        assert (
            old.split(":")[0] == new.split(":")[0]
            and old.partition("#")[2] == new.partition("#")[2]
            and old.find("#") == new.find("#")
        )
    flat = flattened(yaml.safe_load(params.read_text()))
    assert {path: flat[path] for path in values} == values
    assert read("loss", path=params).loss.lambda_mc == 3.49e-05


def test_nothing_changes_where_the_present_values_won(params: Path, tmp_path: Path) -> None:
    before = params.read_bytes()
    assert adopt(proposed(tmp_path, {"loss.lambda_augment": 1.0}), params) == {} and params.read_bytes() == before


def test_values_in_braces_and_at_the_end_of_the_file_are_replaced_alone() -> None:
    text = "a: {b: 1.5, c: [1, 2]}   # why\nd:\n  e: text\n"
    assert replaced(text, {"a.b": 2}) == "a: {b: 2, c: [1, 2]}     # why\nd:\n  e: text\n"
    assert replaced(text, {"d.e": "other words"}) == text.replace("text", "other words")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"loss.lambda_new": 1.0}, "params.yaml has no key 'loss.lambda_new'"),
        ({"filters.confidence_threshold": 7.0}, "'filters.confidence_threshold' is 7.0"),
        (None, "does not exist: `make sweep` proposes first"),
    ],
)
def test_what_cannot_be_adopted_is_one_sentence_and_the_file_stays(
    params: Path, tmp_path: Path, values: dict | None, message: str
) -> None:
    before = params.read_bytes()
    path = tmp_path / "none.yaml" if values is None else proposed(tmp_path, values)
    with pytest.raises(ValueError, match=message) as caught:
        adopt(path, params)
    assert "\n" not in str(caught.value) and params.read_bytes() == before and not list(tmp_path.glob("*.partial"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", "is not valid YAML"),
        ("just words", "must be a YAML file with keys"),
        ("loss: {lambda_mc: 1.0, lambda_mc: 2.0}", "the key 'lambda_mc' is given twice"),
        ("loss: {lambda_mc: 1.0}\nloss: {lambda_nonmc: 1.0}", "the key 'loss' is given twice"),
    ],
)
@pytest.mark.parametrize("damaged", ["proposal", "params"])
def test_a_file_that_is_not_one_is_one_sentence_with_its_name(
    params: Path, tmp_path: Path, text: str, message: str, damaged: str
) -> None:
    proposal = proposed(tmp_path, {"loss.lambda_mc": 0.5})
    path = proposal if damaged == "proposal" else params
    path.write_text(text)
    before = params.read_bytes()
    with pytest.raises(ValueError, match=message) as caught:
        adopt(proposal, params)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value) and params.read_bytes() == before


def test_an_empty_proposal_changes_nothing(params: Path, tmp_path: Path) -> None:
    (tmp_path / "empty.yaml").write_text("")
    assert adopt(tmp_path / "empty.yaml", params) == {}


def test_line_ends_and_letters_stay_as_they_are(params: Path, tmp_path: Path) -> None:
    text = params.read_text().replace("\n", "\r\n")
    params.write_bytes(text.encode())
    adopt(proposed(tmp_path, {"loss.lambda_augment": 0.25}), params)
    assert params.read_bytes() == text.replace("lambda_augment: 1.0\r\n", "lambda_augment: 0.25\r\n", 1).encode()


def test_of_values_that_share_an_anchor_only_the_proposed_one_changes(params: Path, tmp_path: Path) -> None:
    text = params.read_text()
    assert text.index("augment_rate: 1.0") < text.index("lambda_augment: 1.0")
    text = text.replace("augment_rate: 1.0", "augment_rate: &one 1.0", 1)
    params.write_text(text.replace("lambda_augment: 1.0", "lambda_augment: *one", 1))
    adopt(proposed(tmp_path, {"loss.lambda_augment": 0.25}), params)
    values = read("loss", "background", path=params)
    assert values.loss.lambda_augment == 0.25 and values.background.augment_rate == 1.0


def test_the_stage_says_what_it_changed(params: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    adopt_stage.main(proposed(tmp_path, {"loss.lambda_augment": 0.25, "loss.lambda_mc": 1e-3}), params)
    assert capsys.readouterr().out.splitlines() == [
        "loss.lambda_augment: 1.0 → 0.25",
        f"1 value changed in {params}: `git diff {params}` shows it, `dvc repro` uses it",
    ]
