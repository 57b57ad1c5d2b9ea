"""The package as somebody else takes it: alone, with numpy and nothing else."""

import subprocess
import sys
from dataclasses import asdict, fields, replace
from pathlib import Path

import pytest
import yaml

import codebirds
from codebirds.factors import POSITIVE, RANGES, Settings
from everycause.data.codebirds import CodebirdsParams
from everycause.data.sources import DataParams

ROOT = Path(__file__).parents[2]

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
    assert asdict(Settings()) == raw == asdict(CodebirdsParams(**raw).settings)


def test_every_setting_has_a_range_and_a_field_in_params() -> None:
    names = [field.name for field in fields(Settings)]
    assert set(RANGES) == set(names) - {"distractor"} and list(CodebirdsParams.model_fields) == names


@pytest.mark.parametrize("name", RANGES)
def test_values_beyond_their_range_are_refused_by_settings_and_by_params(name: str) -> None:
    low, high = RANGES[name]
    raw = asdict(Settings())
    for value in (low - 1, high + 1, *([low] if name in POSITIVE else [])):
        with pytest.raises(ValueError, match=name):
            replace(Settings(), **{name: value})
        with pytest.raises(ValueError, match=name):
            CodebirdsParams(**raw | {name: value})


def test_what_is_no_number_is_refused() -> None:
    with pytest.raises(ValueError, match="pixel_noise is nan: it must be from 0 to 0.5"):
        Settings(pixel_noise=float("nan"))


def test_numbers_that_give_no_code_are_refused_by_settings_and_by_data_params(raw: dict) -> None:
    with pytest.raises(ValueError, match="a code over 3 variants has at most 4 parts"):
        Settings(length=5, order=3)
    raw["data"]["codebirds"] |= {"length": 5, "order": 3}
    with pytest.raises(ValueError, match="a code over 3 variants has at most 4 parts"):
        DataParams(**raw["data"])


def test_the_package_needs_no_module_of_everycause() -> None:
    for file in Path(codebirds.__file__).parent.glob("*.py"):
        assert "everycause" not in file.read_text(), file
