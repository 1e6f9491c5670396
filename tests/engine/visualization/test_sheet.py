"""The sheet that pictures of studies and comparisons are drawn on."""

from PIL import Image

from engine.visualization.sheet import DPI, plain, save, sheet


def test_a_sheet_becomes_a_png_of_its_size_with_a_palette(tmp_path):
    figure = sheet(3, 2)
    axes = figure.add_subplot()
    plain(axes)
    axes.plot([0, 1], [0, 1])
    save(figure, tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.size == (3 * DPI, 2 * DPI) and picture.mode == "P"
    assert not axes.spines["top"].get_visible()
