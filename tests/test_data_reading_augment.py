"""Augmentation: what each change does to a picture, and that it is a pure function of its counters."""

import pytest
import torch
from torch import Tensor

from orchestrator.data.reading.augment import augment

KEY = (0, 1, 2, 3)


@pytest.fixture(name="images_BCHW")
def pictures() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (400, 3, 32, 24), dtype=torch.uint8, generator=generator)


def test_the_same_counters_give_the_same_pictures_and_any_other_gives_others(images_BCHW):
    kinds = ("flip", "crop", "cutout")
    changed = augment(images_BCHW, kinds, key=KEY)
    assert torch.equal(changed, augment(images_BCHW, kinds, key=KEY))
    for position in range(4):
        other = [*KEY]
        other[position] += 1
        assert not torch.equal(changed, augment(images_BCHW, kinds, key=other))


def test_no_change_is_no_change(images_BCHW):
    assert torch.equal(augment(images_BCHW, (), key=KEY), images_BCHW)


def test_flip_mirrors_about_half_of_the_pictures_left_to_right(images_BCHW):
    changed = augment(images_BCHW, ("flip",), key=KEY)
    is_flipped = (changed == images_BCHW.flip(3)).all(dim=(1, 2, 3))
    is_same = (changed == images_BCHW).all(dim=(1, 2, 3))
    assert (is_flipped ^ is_same).all()
    assert 160 < is_flipped.sum() < 240  # 4 standard deviations


def test_crop_shifts_by_up_to_an_eighth_and_mirrors_at_the_edge(images_BCHW):
    changed = augment(images_BCHW, ("crop",), key=KEY)
    padded = torch.nn.functional.pad(images_BCHW, (3, 3, 4, 4), mode="reflect")
    shifts = []
    for picture, source in zip(changed, padded, strict=True):
        found = [
            (dy, dx)
            for dy in range(9)
            for dx in range(7)
            if torch.equal(picture, source[:, dy : dy + 32, dx : dx + 24])
        ]
        assert len(found) == 1
        shifts += found
    assert {dy for dy, _ in shifts} == set(range(9))
    assert {dx for _, dx in shifts} == set(range(7))


def test_cutout_paints_one_square_in_the_mean_colour(images_BCHW):
    changed = augment(images_BCHW, ("cutout",), key=KEY)
    mean_BC11 = images_BCHW.double().mean((2, 3), keepdim=True).floor()
    painted_BHW = (changed == mean_BC11).all(1) & (changed != images_BCHW).any(1)
    same_BHW = (changed == images_BCHW).all(1)
    assert (painted_BHW | same_BHW).all()
    rows, columns = painted_BHW.any(2).sum(1), painted_BHW.any(1).sum(1)
    assert (rows == 6).all()
    assert (columns == 6).all()
    assert (painted_BHW.sum((1, 2)) >= 35).all()  # a pixel may have had the mean colour before


def test_the_flip_does_not_depend_on_the_other_changes(images_BCHW):
    constant_rows = images_BCHW[:, :, :1, :].expand(-1, -1, 32, -1)
    flipped = augment(constant_rows, ("flip",), key=KEY)
    both = augment(constant_rows, ("cutout", "flip"), key=KEY)
    assert ((flipped == both).all(1).sum((1, 2)) >= 32 * 24 - 36).all()


def test_an_empty_batch_stays_empty():
    empty = torch.empty((0, 3, 8, 8), dtype=torch.uint8)
    assert augment(empty, ("flip", "crop", "cutout"), key=KEY).shape == (0, 3, 8, 8)


def test_pictures_in_channels_last_memory_give_the_same(images_BCHW):
    last = images_BCHW.contiguous(memory_format=torch.channels_last)
    kinds = ("flip", "crop", "cutout")
    assert torch.equal(augment(last, kinds, key=KEY), augment(images_BCHW, kinds, key=KEY))
