import torch

from everycause.evaluation.faithfulness import covered_share, part_measures


def test_part_measures_count_pixels() -> None:
    parts = torch.zeros(1, 2, 4, 4, dtype=torch.bool)
    parts[0, 0, 0, :], parts[0, 1, 3, :2] = True, True
    masks = torch.zeros(1, 4, 4, dtype=torch.bool)
    masks[0, 0, :2], masks[0, 1, :2] = True, True
    assert covered_share(masks, parts).tolist() == [[0.5, 0.0]]
    assert part_measures(masks, parts) == {"share_on_parts": 0.5, "part_recall": 2 / 6, "part_iou": 2 / 8, "flip_distance": 1.0}


def test_removing_everything_destroys_every_part_and_nothing_none() -> None:
    parts = torch.rand(3, 5, 8, 8, generator=torch.Generator().manual_seed(0)) > 0.5
    full = part_measures(torch.ones(3, 8, 8, dtype=torch.bool), parts)
    assert full["flip_distance"] == 5 and full["part_recall"] == 1
    corner = torch.zeros(3, 8, 8, dtype=torch.bool)
    corner[:, 0, 0] = True
    assert part_measures(corner, parts)["flip_distance"] == 0


def test_an_invisible_part_is_not_destroyed() -> None:
    parts = torch.zeros(1, 1, 4, 4, dtype=torch.bool)
    assert covered_share(torch.ones(1, 4, 4, dtype=torch.bool), parts).item() == 0
