from dataclasses import replace
from pathlib import Path

import pytest
import torch

from everycause.artifacts import DAMAGED, load_tensors, save_tensors
from everycause.data.images import normalized
from everycause.data.split import Split
from everycause.errors import UserError
from everycause.explanation import masks as masks_module
from everycause.explanation.image_selection import evenly_over_classes, select_images
from everycause.explanation.masks import MaskParams, Masks, generate, scorers, searched
from everycause.explanation.partitions import StoredPartitions, joined, numbers
from everycause.explanation.selectors import SELECTORS
from everycause.inference import logits_of
from everycause.models import Classifier, ModelParams
from tests.conftest import STATISTICS
from tests.explanation.searching import PARAMS, always_right


@pytest.fixture
def split(train: Split, classifier: Classifier) -> Split:
    return always_right(train, classifier)


def vision_transformer(classes: int) -> Classifier:
    torch.manual_seed(0)
    params = ModelParams(
        name="test_vit",
        pretrained=False,
        weights="cache",
        explained_layer="blocks.5.norm1",
        head="published",
        dropout=0.0,
    )
    made = Classifier(params, tuple(f"class-{i}" for i in range(classes)), 32, STATISTICS)
    with torch.no_grad():
        made.network.get_classifier().weight.normal_(0, 1.0)
    return made.eval()


def test_a_stored_flip_flips_the_stored_model_and_the_numbers_are_its_own(
    tmp_path: Path, classifier: Classifier, split: Split
) -> None:
    masks = generate(classifier, split, PARAMS, tmp_path, "model")
    assert masks.flipped.any() and int(masks.selection_counts[0]) == len(split)
    images = normalized(split.read(masks.index.numpy()), classifier.statistics, torch.device("cpu"))
    labels = split.labels[masks.index]
    with torch.inference_mode():
        before = classifier(images).softmax(dim=1)
        after = classifier(images * ~masks.pixels(masks.removed)[:, None]).softmax(dim=1)
    assert torch.equal(masks.flipped, after.argmax(dim=1) != labels)
    assert torch.allclose(before.gather(1, torch.stack([labels, masks.runner_up], dim=1)), masks.before, atol=1e-5)
    assert torch.allclose(after.gather(1, torch.stack([labels, masks.runner_up], dim=1)), masks.after, atol=1e-5)
    assert torch.equal(masks.runner_up, before.scatter(1, labels[:, None], -1).argmax(dim=1))
    assert masks.summary()["area_at_flip"] == pytest.approx(masks.summary()["regions_at_flip"] / 16)


def test_a_compiled_network_is_traced_once_and_finds_the_same_masks(
    monkeypatch: pytest.MonkeyPatch, classifier: Classifier, split: Split
) -> None:
    graphs: list[torch.fx.GraphModule] = []
    real = torch.compile

    def traced(graph: torch.fx.GraphModule, _inputs: list[torch.Tensor]) -> object:
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", lambda network, dynamic: real(network, dynamic=dynamic, backend=traced))
    index, params = torch.arange(12), PARAMS.model_copy(update={"search": "greedy"})
    plain = Masks.joined(list(searched(classifier, split, index, params)))
    assert graphs == []
    compiled = Masks.joined(list(searched(classifier, split, index, params.model_copy(update={"compiled": True}))))
    assert same(plain, compiled) and len(graphs) == 1  # every pass is filled up to the same size


def test_one_image_or_many_one_shard_or_several_give_the_same_masks(
    tmp_path: Path, classifier: Classifier, split: Split
) -> None:
    whole = generate(classifier, split, PARAMS, fresh(tmp_path / "whole"), "model")
    shards = generate(classifier, split, PARAMS.model_copy(update={"shard": 3}), fresh(tmp_path / "shards"), "model")
    assert len(list((tmp_path / "shards").glob("[!.]*"))) == 7
    assert same(whole, shards)
    (alone,) = searched(classifier, split, whole.index[3:4], PARAMS)
    assert torch.equal(alone.order[0], whole.order[3]) and torch.equal(alone.after[0], whole.after[3])


def test_a_killed_search_goes_on_and_ends_in_the_same_bytes(
    tmp_path: Path, classifier: Classifier, split: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = PARAMS.model_copy(update={"shard": 5})
    generate(classifier, split, params, fresh(tmp_path / "whole"), "model")
    killed = fresh(tmp_path / "killed")
    real, calls = masks_module.searched, []

    def interrupted(*arguments: object) -> object:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(masks_module, "searched", interrupted)
    with pytest.raises(KeyboardInterrupt):
        generate(classifier, split, params, killed, "model")
    finished = {path.name: path.stat().st_mtime_ns for path in killed.glob("masks-*")}
    assert len(finished) == 2
    monkeypatch.setattr(masks_module, "searched", real)
    generate(classifier, split, params, killed, "model")
    assert {path.name: path.read_bytes() for path in killed.iterdir()} == {
        path.name: path.read_bytes() for path in (tmp_path / "whole").iterdir()
    }
    assert all((killed / name).stat().st_mtime_ns == time for name, time in finished.items())


@pytest.mark.parametrize("at", [0, 8, -3])
def test_a_damaged_shard_is_reported_once_and_searched_again(
    tmp_path: Path, classifier: Classifier, split: Split, caplog: pytest.LogCaptureFixture, at: int
) -> None:
    params = PARAMS.model_copy(update={"shard": 5})
    whole = generate(classifier, split, params, tmp_path, "model")
    file = tmp_path / masks_module.FILE.format(1)
    good = bytearray(file.read_bytes())
    damaged = good.copy()
    damaged[at] ^= 1  # the length of the header, the header, and pixels, which could be read without a complaint
    file.write_bytes(damaged)
    for _ in range(2):
        assert same(generate(classifier, split, params, tmp_path, "model"), whole)
    (said,) = [record.message for record in caplog.records if "is damaged" in record.message]
    assert str(file) in said and file.read_bytes() == bytes(good)
    assert (tmp_path / (file.name + DAMAGED)).read_bytes() == bytes(damaged)


def same(first: Masks, second: Masks) -> bool:
    pairs = [(value, vars(second)[name]) for name, value in vars(first).items() if name != "partition"]
    pairs.append((numbers(first.partition), numbers(second.partition)))
    return all(torch.equal(*pair) if isinstance(pair[0], torch.Tensor) else pair[0] == pair[1] for pair in pairs)


def fresh(folder: Path) -> Path:
    folder.mkdir()
    return folder


@pytest.mark.parametrize("baseline", ("zeros", "blur", "background"))
@pytest.mark.parametrize("partition", ("grid", "slico"))
def test_every_baseline_and_partition_gives_flips(
    tmp_path: Path, classifier: Classifier, split: Split, baseline: str, partition: str
) -> None:
    masks = generate(
        classifier,
        split,
        PARAMS.model_copy(update={"baseline": baseline, "partition": partition, "regions": 25, "max_regions": 6}),
        tmp_path,
        "model",
    )
    assert masks.flipped.any() and len(masks.partition) == (1 if partition == "grid" else len(masks.index))
    assert not (masks.removed & (masks.areas == 0)).any()
    assert 0 < masks.summary()["area_at_flip"] < 1


@pytest.mark.parametrize("selector", [name for name in SELECTORS if name not in ("counterfactual", "filter_cam")])
def test_other_selectors_come_as_masks_too(tmp_path: Path, classifier: Classifier, split: Split, selector: str) -> None:
    masks = generate(
        classifier, split, PARAMS.model_copy(update={"selector": selector, "max_regions": 4}), tmp_path, "model"
    )
    images = normalized(split.read(masks.index.numpy()), classifier.statistics, torch.device("cpu"))
    with torch.inference_mode():
        flips = classifier(images * ~masks.pixels(masks.removed)[:, None]).argmax(dim=1) != split.labels[masks.index]
    assert torch.equal(flips, masks.flipped) and (masks.sizes[~masks.flipped] == 4).all()


@pytest.mark.parametrize("regions", (4, 64, 400))
@pytest.mark.parametrize("classes", (2, 5))
def test_transformers_any_number_of_regions_and_two_classes(
    tmp_path: Path, train: Split, regions: int, classes: int
) -> None:
    model = vision_transformer(classes)
    small = train.subset(torch.arange(6).numpy())
    small = replace(small, class_names=model.class_names)
    labels = logits_of(model, small).argmax(dim=1)
    split = Split(small.name, labels, model.class_names, 32, small.read, small.identity)
    found = generate(
        model, split, PARAMS.model_copy(update={"regions": regions, "images": 3, "max_regions": 8}), tmp_path, "model"
    )
    assert found.order.shape == (3, min(8, max(1, regions // 4)))
    cam = PARAMS.model_copy(update={"regions": regions, "images": 3, "selector": "grad_cam"})
    assert len(generate(model, split, cam, fresh(tmp_path / "cam"), "model").index) == 3


@pytest.mark.parametrize("partition", ("grid", "slico"))
def test_one_image_per_shard_gives_each_image_its_own_partition(
    tmp_path: Path, classifier: Classifier, split: Split, partition: str
) -> None:
    params = PARAMS.model_copy(update={"partition": partition, "images": 5, "max_regions": 2})
    whole = generate(classifier, split, params, fresh(tmp_path / "whole"), "model")
    shards = generate(classifier, split, params.model_copy(update={"shard": 1}), fresh(tmp_path / "shards"), "model")
    assert len(list((tmp_path / "shards").glob("[!.]*"))) == 5 and same(whole, shards)
    assert shards.shared == (partition == "grid") and len(shards.partition) == (1 if shards.shared else 5)
    one = shards.rows(torch.tensor([3]))
    assert one.shared == shards.shared and len(one.partition) == 1
    assert torch.equal(one.selection_counts, shards.selection_counts)
    assert torch.equal(one.pixels(one.removed)[0], shards.pixels(shards.removed)[3])
    again = Masks.joined([one, shards.rows(torch.tensor([1]))])
    assert torch.equal(again.pixels(again.removed), shards.pixels(shards.removed)[[3, 1]])


def test_masks_of_another_version_are_refused_by_name(tmp_path: Path, classifier: Classifier, split: Split) -> None:
    generate(classifier, split, PARAMS, tmp_path, "model")
    file = tmp_path / masks_module.FILE.format(0)
    tensors, description = load_tensors(file, "generate_masks")
    without = {name: value for name, value in tensors.items() if name != "shared"}
    wide = tensors | {"partition": tensors["partition"].long()}  # as it was before region numbers had 16 bits
    for changed in (without, wide):
        save_tensors(file, changed, description)
        with pytest.raises(UserError, match="another version of the search: run the stage generate_masks again"):
            Masks.load(tmp_path, "model", split.identity)


def test_partitions_of_single_images_stay_in_their_files_until_they_are_asked_for(
    tmp_path: Path, classifier: Classifier, split: Split
) -> None:
    params = PARAMS.model_copy(update={"partition": "slico", "images": 6, "max_regions": 2})
    search = Masks.joined(list(searched(classifier, split, torch.arange(6), params)))
    assert search.partition.dtype == torch.uint16
    for number, rows in enumerate(torch.arange(6).split(4)):
        search.rows(rows).save(tmp_path / masks_module.FILE.format(number), "model", split.identity)
    stored = Masks.load(tmp_path, "model", split.identity)
    assert isinstance(stored.partition, StoredPartitions) and same(search, stored)
    some = torch.tensor([5, 0, 3])
    assert same(search.rows(some), stored.rows(some))
    both = joined([stored.partition, search.partition[:2]])
    assert torch.equal(numbers(both[torch.tensor([7, 1])]), numbers(search.partition[[1, 1]]))
    tensors, description = load_tensors(tmp_path / masks_module.FILE.format(1), "generate_masks")
    tensors["partition"] = torch.full((2, 32, 32), 16, dtype=torch.uint16)
    save_tensors(tmp_path / masks_module.FILE.format(1), tensors, description)
    assert torch.equal(numbers(stored.partition[:4]), numbers(search.partition[:4]))
    with pytest.raises(UserError, match="names regions that do not exist.*: delete its folder and run the stage"):
        stored.rows(some).pixels(search.rows(some).removed)


def test_images_that_are_wrong_or_unsure_are_counted_and_not_searched(
    tmp_path: Path, classifier: Classifier, split: Split
) -> None:
    labels = split.labels.clone()
    labels[:5] = (labels[:5] + 1) % 4
    wrong = Split(split.name, labels, split.class_names, split.image_size, split.read, split.identity)
    masks = generate(classifier, wrong, PARAMS.model_copy(update={"images": 100}), tmp_path, "model")
    assert masks.selection_counts.tolist() == [24, 5, 0] and not set(masks.index.tolist()) & set(range(5))
    with pytest.raises(ValueError, match="lower masks.confidence"):
        generate(classifier, split, PARAMS.model_copy(update={"confidence": 0.999999}), tmp_path, "model")


def test_masks_of_another_model_or_of_other_data_are_refused(
    tmp_path: Path, classifier: Classifier, split: Split
) -> None:
    masks = generate(classifier, split, PARAMS, tmp_path, "this model")
    loaded = Masks.load(tmp_path, "this model", split.identity)
    assert same(loaded, masks)
    with pytest.raises(ValueError, match="made for another model"):
        Masks.load(tmp_path, "that model", split.identity)
    with pytest.raises(ValueError, match="made from other data"):
        Masks.load(tmp_path, "this model", "other images")
    with pytest.raises(ValueError, match="run the stage generate_masks"):
        Masks.load(tmp_path / "nowhere", "this model", split.identity)


def test_images_are_chosen_evenly_over_the_classes() -> None:
    labels = torch.tensor([0] * 6 + [1] * 2 + [2] * 4)
    everything = torch.arange(12)
    assert evenly_over_classes(everything, labels, 6).tolist() == [0, 1, 6, 7, 8, 9]
    assert evenly_over_classes(everything, labels, 9).tolist() == [0, 1, 2, 3, 6, 7, 8, 9, 10]
    assert torch.equal(evenly_over_classes(everything, labels, 50), everything)
    assert evenly_over_classes(everything[3:], labels, 3).tolist() == [3, 6, 8]


def test_a_set_never_has_more_than_a_quarter_of_the_regions() -> None:
    sizes = [
        PARAMS.model_copy(update={"regions": cells**2, "max_regions": 10}).largest_set for cells in (2, 3, 4, 6, 7)
    ]
    assert sizes == [1, 2, 4, 9, 10]
    with pytest.raises(ValueError, match="regions"):
        MaskParams(**{**PARAMS.model_dump(), "regions": 401})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("index", [0, 1, 2, 24]),  # the split has 24 images
        ("index", [-1, 1, 2, 3]),
        ("order", [[16, -1]] * 4),  # a grid of 4 × 4 regions
        ("order", [[-2, 0]] * 4),
        ("partition", [[[16] * 32] * 32]),
        ("flipped", [1.0, 0.0, 1.0, 1.0]),
        ("effect", [[0.0] * 16] * 3),
        ("areas", 1.0),
    ],
)
def test_damaged_masks_are_one_sentence(
    tmp_path: Path, classifier: Classifier, split: Split, name: str, value: list
) -> None:
    generate(classifier, split, PARAMS.model_copy(update={"images": 4}), tmp_path, "model")
    file = tmp_path / masks_module.FILE.format(0)
    tensors, description = load_tensors(file, "generate_masks")
    kind = torch.uint16 if name == "partition" else None
    save_tensors(file, {**tensors, name: torch.tensor(value, dtype=kind)}, description)
    with pytest.raises(UserError, match="masks-00000.safetensors is damaged .* run the stage generate_masks again"):
        Masks.load(tmp_path, "model", split.identity, len(split))


def test_a_lower_threshold_is_advised_only_where_it_would_help(classifier: Classifier, split: Split) -> None:
    with pytest.raises(UserError, match="train longer or lower masks.confidence$"):
        select_images(classifier, split, 0.999999, 5)
    wrong = replace(split, labels=(split.labels + 1) % split.num_classes)
    with pytest.raises(UserError, match="no image of 'train' is predicted correctly with p.y. > 0.5: train longer$"):
        select_images(classifier, wrong, 0.5, 5)


def test_proposals_come_from_an_accelerated_copy_and_confirmations_from_the_network(classifier: Classifier) -> None:
    fast, exact = scorers(classifier, PARAMS)
    assert exact.network is classifier.network
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in fast.network.modules())
