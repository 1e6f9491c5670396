import numpy as np
import pytest

from pipelines.index.write import Growing, Pages, save_rows


@pytest.mark.parametrize("kind, width", [(np.float32, 2), (np.int64, 0), (np.bool_, 0), (np.uint8, 0)])
@pytest.mark.parametrize("parts", [[], [0], [3], [5, 0, 7], [1] * 1234])
def test_a_grown_file_is_that_of_save_byte_for_byte(tmp_path, kind, width, parts):
    rows = [np.arange(n * max(1, width)).astype(kind).reshape((n, width) if width else (n,)) for n in parts]
    with Growing(tmp_path / "a.npy", kind, width) as file:
        for part in rows:
            file.append(part)
    whole = np.concatenate([np.zeros((0, width) if width else (0,), kind), *rows])
    np.save(tmp_path / "b.npy", whole)
    assert (tmp_path / "a.npy").read_bytes() == (tmp_path / "b.npy").read_bytes()


def test_other_rows_are_refused(tmp_path):
    with pytest.raises(AssertionError), Growing(tmp_path / "a.npy", np.float32, 2) as file:
        file.append(np.zeros((3, 2)))
    assert len(np.load(tmp_path / "a.npy")) == 0  # closed, of no use


def test_pages_end_to_end(tmp_path):
    with Pages(tmp_path, texts=True) as pages:
        pages.add("a.jpg", [3, 4], np.ones((7, 2), np.float32), np.array([True, False]), ["", "\u00e9"])
        pages.add("empty.jpg", [], np.zeros((0, 2), np.float32), np.zeros(0, bool), None)
        pages.add("b.jpg", [3], np.zeros((3, 2), np.float32), np.array([True]), None)
    save_rows(tmp_path, size_wh=np.ones((3, 2), np.int32))
    assert (pages.pages, pages.polygons, pages.ignored) == (3, 3, 2)
    made = {path.stem: np.load(path) for path in tmp_path.iterdir()}
    assert made["page_offsets"].tolist() == [0, 2, 2, 3] and made["point_offsets"].tolist() == [0, 3, 7, 10]
    assert made["names"].tobytes() == b"a.jpgempty.jpgb.jpg" and made["name_offsets"].tolist() == [0, 5, 14, 19]
    assert made["texts"].tobytes().decode() == "\u00e9" and made["text_offsets"].tolist() == [0, 0, 2, 2]
    assert made["ignore"].tolist() == [True, False, True] and made["points"].shape == (10, 2)
