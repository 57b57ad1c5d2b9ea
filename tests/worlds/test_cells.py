import pytest

from codebirds.factors import OWN, WORLDS, dominance
from everycause.data.sources import DataParams
from everycause.errors import UserError
from everycause.params import validated
from everycause.worlds.cells import Cell, World, WorldsParams, cells


@pytest.fixture
def params(raw: dict) -> WorldsParams:
    return WorldsParams(**raw["worlds"])


def test_a_study_runs_every_named_world_once_for_each_seed(params: WorldsParams, data_params: DataParams) -> None:
    asked = cells("study", params, data_params)
    assert len(asked) == len(set(asked)) == len(params.study.worlds) * len(params.study.seeds)
    assert [cell.seed for cell in asked] == sorted(cell.seed for cell in asked)  # whole seeds first


def test_a_cell_of_a_named_world_has_its_settings_and_the_sizes_of_params(data_params: DataParams) -> None:
    for world, settings in WORLDS.items():
        made = Cell(World(world, 1.0, settings["scene_correlation"]), 0).data(data_params).codebirds
        assert {name: getattr(made, name) for name in settings} == settings and made.world == world
        assert (made.train, made.length) == (data_params.codebirds.train, data_params.codebirds.length)


def test_corners_of_the_map_are_the_named_worlds(params: WorldsParams, data_params: DataParams) -> None:
    asked = {cell.where[1:3]: cell for cell in cells("map", params, data_params)}
    assert len(asked) == len(params.map.dominance) * len(params.map.scene_correlation)
    for world, corner in {"premise": (1, 0), "confounded": (1, 0.9), "additive": (0, 0.9)}.items():
        made = asked[corner].data(data_params).codebirds.model_dump()
        assert {name: made[name] for name in WORLDS[world]} == WORLDS[world] and made["world"] == OWN


def test_cells_between_have_cues_between(data_params: DataParams) -> None:
    made = Cell(World(OWN, 0.25, 0.5), 0).data(data_params).codebirds
    assert made.hue_jitter == dominance(0.25)["hue_jitter"] and made.scene_correlation == 0.5


def test_cells_have_different_names(params: WorldsParams, data_params: DataParams) -> None:
    names = [cell.name for plan in ("study", "map", "noise") for cell in cells(plan, params, data_params)]
    both = {"confounded-seed-0"}  # the noise of 0 % is the study's own world
    assert sorted(names) == sorted([*set(names), *both])


def test_noise_is_asked_for_by_its_share(params: WorldsParams, data_params: DataParams) -> None:
    asked = cells("noise", params, data_params)
    assert [cell.where.label_noise for cell in asked] == params.noise.label_noise
    assert len({cell.data(data_params).model_dump_json() for cell in asked}) == 1


def test_photographs_have_no_worlds(params: WorldsParams, raw: dict) -> None:
    folder = DataParams(**raw["data"] | {"source": "folder"})
    with pytest.raises(UserError, match=r"make map needs data.source codebirds, whose causes are known, not folder"):
        cells("map", params, folder)


@pytest.mark.parametrize(
    ("plan", "change", "sentence"),
    [
        ("study", {"worlds": ["eden"]}, "there is no world 'eden'"),
        ("study", {"worlds": ["premise", "premise"]}, "'premise' is named twice"),
        ("study", {"worlds": []}, "at least 1"),
        ("study", {"rows": ["masks"]}, "rows: 'continued' is missing"),
        ("study", {"rows": ["continued", "mask"]}, "rows: 'mask' is not a retraining row"),
        ("study", {"seeds": [1, 1]}, "1 is named twice"),
        ("map", {"dominance": [0.0, 1.5]}, "1.5 does not lie between 0 and 1"),
        ("map", {"scene_correlation": [-0.1]}, "-0.1 does not lie between 0 and 1"),
        ("noise", {"label_noise": [1.5]}, "label_noise: 1.5 does not lie between 0 and 1"),
        ("noise", {"world": "eden"}, "there is no world 'eden'"),
        ("map", {"rows": ["base", "continued"]}, "rows: 'base' is not a retraining row"),
    ],
)
def test_plans_that_cannot_run_are_refused(raw: dict, plan: str, change: dict, sentence: str) -> None:
    raw["worlds"][plan] |= change
    with pytest.raises(UserError, match=sentence):
        validated(raw, "params.yaml")
