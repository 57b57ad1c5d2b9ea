"""The package as somebody else takes it: alone, with numpy and nothing else."""

import subprocess
import sys
from dataclasses import asdict, fields, replace
from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

import codebirds
from codebirds.factors import POSITIVE, RANGES, WORLDS, Settings, dominance
from everycause.data.codebirds import CodebirdsParams
from everycause.data.sources import DataParams

ROOT = Path(__file__).parents[2]
SETTLED = set(WORLDS["premise"])
"""Settings that a named world fixes."""

ALONE = """
import sys

class NumpyAlone:
    def find_spec(self, name, path=None, target=None):
        top = name.split(".")[0]
        if top not in sys.stdlib_module_names and top not in ("numpy", "codebirds", "_distutils_hack"):
            raise ImportError(f"{name} is not numpy")

sys.meta_path.insert(0, NumpyAlone())
from codebirds.birds import Codebirds
from codebirds.factors import Settings
from codebirds.birds import variations
birds = Codebirds(Settings(train=8, test=4, image_size=32), threads=2)
print(birds.images(birds.factors("train")).shape, sum(1 for _ in variations(birds)))
"""


def test_birds_are_rendered_where_nothing_but_numpy_can_be_imported() -> None:
    done = subprocess.run([sys.executable, "-c", ALONE], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[0] == "(8, 3, 32, 32) 40"


def test_the_blocked_import_is_really_blocked() -> None:
    text = ALONE.split("from codebirds")[0] + "import yaml"
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, cwd=ROOT)
    assert "yaml is not numpy" in done.stderr


def test_the_example_of_the_package_runs() -> None:
    example = [line.strip() for line in (codebirds.__doc__ or "").splitlines() if line.startswith("    ")]
    assert len(example) == 4
    names: dict = {}
    exec("\n".join(example), names)
    assert names["images"].shape == (1000, 3, 64, 64)


def test_the_default_settings_are_those_of_params_yaml() -> None:
    raw = yaml.safe_load((ROOT / "params.yaml").read_text())["data"]["codebirds"]
    assert asdict(Settings()) == asdict(CodebirdsParams(**raw).settings)


def test_every_setting_has_a_range_and_a_field_in_params() -> None:
    names = [field.name for field in fields(Settings)]
    assert set(RANGES) == set(names) - {"distractor", "world"} and list(CodebirdsParams.model_fields) == names


@pytest.mark.parametrize("name", RANGES)
def test_values_beyond_their_range_are_refused_by_settings_and_by_params(name: str) -> None:
    low, high = RANGES[name]
    raw = asdict(Settings()) | {"world": "own"}
    for value in (low - 1, high + 1, *([low] if name in POSITIVE else [])):
        with pytest.raises(ValueError, match=name):
            replace(Settings(world="own"), **{name: value})
        with pytest.raises(ValueError, match=name):
            CodebirdsParams(**raw | {name: value})


def test_what_is_no_number_is_refused() -> None:
    with pytest.raises(ValueError, match="pixel_noise is nan: it must be from 0 to 0.5"):
        Settings(world="own", pixel_noise=float("nan"))


@pytest.mark.parametrize("world", WORLDS)
def test_a_named_world_brings_its_settings(world: str) -> None:
    sizes = {name: value for name, value in asdict(Settings()).items() if name not in SETTLED}
    params = CodebirdsParams(**sizes | {"world": world, "hue_jitter": None})
    assert {name: getattr(params, name) for name in SETTLED} == WORLDS[world]
    assert asdict(params.settings) == params.model_dump()


@pytest.mark.parametrize("name", sorted(SETTLED))
def test_settings_that_contradict_a_named_world_are_refused_by_settings_and_by_params(name: str) -> None:
    value = not WORLDS["premise"][name] if name == "distractor" else 0.3
    with pytest.raises(ValueError, match=f"{name} is {value}, and the world 'premise' has .* or set world to own"):
        Settings(**{name: value})
    with pytest.raises(ValueError, match=f"{name} is {value}, and the world 'premise' has .* or set world to own"):
        CodebirdsParams(**asdict(Settings()) | {name: value})


def test_a_world_that_does_not_exist_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="there is no world 'eden': name premise, confounded, additive, or own"):
        CodebirdsParams(**asdict(Settings()) | {"world": "eden"})
    with pytest.raises(ValidationError, match="world"):
        CodebirdsParams(**asdict(Settings()) | {"world": ["premise"]})


def test_a_world_of_ones_own_needs_every_setting() -> None:
    given = asdict(Settings()) | {"world": "own"}
    assert CodebirdsParams(**given | {"scene_correlation": 0.3}).scene_correlation == 0.3
    given.pop("hue_jitter")
    with pytest.raises(ValidationError, match="hue_jitter"):
        CodebirdsParams(**given)


def test_dominance_moves_the_cues_from_one_named_world_to_the_other() -> None:
    assert all(WORLDS["additive"][name] == value for name, value in dominance(0).items())
    assert all(WORLDS["premise"][name] == WORLDS["confounded"][name] == value for name, value in dominance(1).items())
    assert dominance(0.5)["hue_saturation"] == pytest.approx(0.7)


def test_numbers_that_give_no_code_are_refused_by_settings_and_by_data_params(raw: dict) -> None:
    with pytest.raises(ValueError, match="a code over 3 variants has at most 4 parts"):
        Settings(length=5, order=3)
    raw["data"]["codebirds"] |= {"length": 5, "order": 3}
    with pytest.raises(ValueError, match="a code over 3 variants has at most 4 parts"):
        DataParams(**raw["data"])


def test_the_package_needs_no_module_of_everycause() -> None:
    for file in Path(codebirds.__file__).parent.glob("*.py"):
        assert "everycause" not in file.read_text(), file
