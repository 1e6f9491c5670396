"""visualization.overlay: colours by status, sizes, and colours that everyone tells apart."""

import cv2
import numpy as np
import pytest

from engine.visualization import overlay
from pipelines.errors import UserError

SQUARE = np.array([[100, 100], [200, 100], [200, 160], [100, 160]], np.float32) + 0.5  # pixel centres


def page(width=1000, height=700):
    return np.full((height, width, 3), 255, np.uint8)


def edge(picture, polygon, colour, header) -> bool:
    """Whether the middle of a polygon's upper edge has this colour (but for anti-aliasing)."""
    (x0, y0), (x1, _) = polygon[0], polygon[1]
    band = picture[header + int(y0) - 3 : header + int(y0) + 3, int((x0 + x1) / 2)].astype(int)
    return bool((abs(band - colour).max(axis=1) < 30).any())


@pytest.mark.parametrize(
    ("status", "ignored", "colour"),
    [
        ("matched", False, overlay.GREEN),
        ("split", False, overlay.PURPLE),
        ("merged", False, overlay.SKY),
        ("missed", False, overlay.RED),
        ("missed", True, overlay.GREY),
        ("ignored", False, overlay.GREY),
        ("skipped", False, overlay.GREY),
    ],
)
def test_ground_truth_has_the_colour_of_its_status(status, ignored, colour):
    picture = overlay.overlay(page(), gt=[SQUARE], ignore=[ignored], gt_status=[status])
    assert edge(picture, SQUARE, colour, picture.shape[0] - 700)


@pytest.mark.parametrize(
    ("status", "colour"), [("matched", overlay.BLUE), ("false_positive", overlay.ORANGE), ("dont_care", overlay.GREY)]
)
def test_predictions_have_the_colour_of_their_status(status, colour):
    picture = overlay.overlay(page(), pred=[SQUARE], pred_status=[status], scores=[0.9])
    assert edge(picture, SQUARE, colour, picture.shape[0] - 700)


def test_both_stay_visible_where_they_agree():
    picture = overlay.overlay(page(), gt=[SQUARE], pred=[SQUARE], pred_status=["matched"])
    header = picture.shape[0] - 700
    assert edge(picture, SQUARE, overlay.BLUE, header)
    band = picture[header + 97 : header + 104, 150].astype(int)
    assert np.abs(band - overlay.GREEN).sum(axis=1).min() < 60, "green beside the blue"


def test_the_page_is_copied_and_stands_below_the_header():
    image = np.random.default_rng(0).integers(0, 255, (700, 1000, 3), dtype=np.uint8)
    before = image.copy()
    picture = overlay.overlay(image, gt=[SQUARE + 5000], pred=[SQUARE - 5000], title="a.jpg  H-mean 0.5")
    assert (image == before).all() and picture.shape[1:] == (1000, 3) and picture.dtype == np.uint8
    assert (picture[-700:] == image).all(), "polygons outside the page draw nothing"
    assert (picture[:-700] < 100).any(), "the title"


def test_narrow_pages_are_enlarged_and_polygons_with_them():
    picture = overlay.overlay(page(400, 300), gt=[SQUARE], gt_status=["missed"])
    header = picture.shape[0] - 600
    assert picture.shape[1] == 800 and edge(picture, 2 * SQUARE - 0.5, overlay.RED, header)
    assert overlay.overlay(page(100, 50)).shape[1] == 640


def test_what_is_wrong_is_tinted_inside():
    for status, colour in (
        ("missed", overlay.RED),
        ("split", overlay.PURPLE),
        ("merged", overlay.SKY),
        ("matched", None),
    ):
        picture = overlay.overlay(page(), gt=[SQUARE], gt_status=[status])
        inside = picture[picture.shape[0] - 700 + 130, 150]
        mixed = np.full(3, 255) if colour is None else 255 * (1 - overlay.TINT) + overlay.TINT * np.array(colour)
        assert np.abs(inside - mixed).max() <= 1, status
    assert (overlay.overlay(page(), gt=[SQUARE - 150], gt_status=["missed"])[-650:] == 255).all(), "partly off the page"


def test_no_polygons_at_all():
    assert overlay.overlay(page()).shape[1] == 1000


def test_polygons_of_any_count_of_corners():
    ring = np.stack([300 + 90 * np.cos(np.arange(11)), 300 + 50 * np.sin(np.arange(11))], 1)
    assert (overlay.overlay(page(), pred=[ring, SQUARE], scores=[1.0, 0.25]) != 255).any()


def test_wrong_arguments():
    with pytest.raises(ValueError, match="uint8"):
        overlay.overlay(page().astype(np.float32))
    with pytest.raises(ValueError, match="one entry each"):
        overlay.overlay(page(), gt=[SQUARE], gt_status=[])
    with pytest.raises(ValueError, match="unknown status lost"):
        overlay.overlay(page(), gt=[SQUARE], gt_status=["lost"])


def test_pictures_are_saved_as_they_are(tmp_path):
    image = page()
    image[:, :500] = overlay.RED
    path = overlay.save_image(tmp_path / "new" / "a.png", image)
    assert (cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB) == image).all()
    assert overlay.save_image(tmp_path / "a.jpg", image).read_bytes()[:2] == b"\xff\xd8"
    with pytest.raises(UserError, match=r"\.jpg or \.png"):
        overlay.save_image(tmp_path / "a.gif", image)
    with pytest.raises(UserError, match="cannot be written"):
        overlay.save_image(path / "a.png", image)


def seen_as(colour, matrix):
    """CIELAB of an sRGB colour after a matrix in linear RGB."""
    linear = np.array([c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in np.array(colour) / 255])
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    xyz = to_xyz @ np.clip(matrix @ linear, 0, 1) / [0.9505, 1.0, 1.089]
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


# Machado, Oliveira, Fernandes 2009, IEEE TVCG 15(6), severity 1
BLINDNESS = {
    "none": [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
    "protan": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deutan": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritan": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}


@pytest.mark.parametrize("kind", BLINDNESS)
def test_colours_of_pictures_are_told_apart_by_everyone(kind):
    """A difference of 2.3 is just seen; red and green of the palette before were 9 apart for deutans."""
    labs = [seen_as(colour, np.array(BLINDNESS[kind])) for _, colour in overlay.LEGEND]
    assert min(np.linalg.norm(a - b) for i, a in enumerate(labs) for b in labs[:i]) > 19
