import pytest

from pipelines.errors import UserError
from pipelines.synthetic import fonts


def test_fonts_are_found_and_cover_the_texts():
    bundled = fonts.families("bundled")
    assert len(bundled) == 6 and all("mpl-data" in path for pair in bundled for path in pair)
    every = "".join(map(chr, range(33, 127)))
    assert all(fonts.covers(path, every) for pair in bundled for path in pair)
    assert not fonts.covers(bundled[0][0], fonts.HANGUL_PROBE)
    assert fonts.families("system")[:6] == bundled


def test_no_hangul_font_is_a_clear_refusal(monkeypatch, tmp_path):
    monkeypatch.setattr(fonts, "SYSTEM_FOLDERS", (tmp_path,))
    with pytest.raises(UserError, match="no installed font has Hangul"):
        fonts.families.__wrapped__("hangul")
