"""Overlays show the frame where there is no object and the object's color where there is one."""

import numpy as np

from vosnet.export.overlay import contact_sheet, draw_mask, object_colors


def test_background_pixels_are_the_frame_itself() -> None:
    frame = np.random.default_rng(0).integers(0, 255, (40, 60, 3), np.uint8)
    mask = np.zeros((40, 60), np.uint8)
    mask[10:20, 10:30] = 2
    picture = draw_mask(frame, mask, colors=object_colors())
    assert np.array_equal(picture[mask == 0], frame[mask == 0])
    assert np.array_equal(picture[10, 10], object_colors()[2]), "the outline is the full color"
    middle = (frame[15, 20].astype(float) + object_colors()[2]) / 2
    assert np.abs(picture[15, 20] - middle).max() <= 1


def test_opacity_zero_without_contour_changes_nothing() -> None:
    frame = np.full((8, 8, 3), 77, np.uint8)
    mask = np.ones((8, 8), np.uint16) * 300
    assert np.array_equal(draw_mask(frame, mask, colors=object_colors(), opacity=0.0, contour=False), frame)


def test_color_blind_palette_has_seven_distinct_colors_and_black_background() -> None:
    colors = object_colors("okabe-ito")
    assert not colors[0].any()
    assert len({tuple(color) for color in colors[1:8]}) == 7


def test_contact_sheet_fills_the_last_row() -> None:
    pictures = [np.full((10, 20, 3), i, np.uint8) for i in range(5)]
    sheet = contact_sheet(pictures, columns=4, width=20)
    assert sheet.shape == (20, 80, 3)
    assert sheet[15, 10, 0] == 4
    assert sheet[15, 30, 0] == 0
