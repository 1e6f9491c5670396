import json

import pytest
from annotation_files import QUAD, contest, labelme, put, put_json, read, sroie

from pipelines.annotations import page
from pipelines.annotations.read import read_source
from pipelines.errors import UserError
from tests.faults.fuzz_targets import CONTEST


@pytest.mark.parametrize("bad", ["../a.jpg", "/etc/passwd", "C:\\a.jpg", "..\\a.jpg", "x/../../a.jpg", "", "a\0.jpg"])
@pytest.mark.parametrize("kind", ["contest", "coco", "labelme", "paddle", "list"])
def test_paths_cannot_leave_the_root(tmp_path, kind, bad):
    if kind == "contest":
        path = put_json(tmp_path / "x.json", contest({}, bad))
    elif kind == "coco":
        path = put_json(tmp_path / "x.json", {"images": [{"id": 1, "file_name": bad}], "annotations": []})
    elif kind == "labelme":
        path = put_json(tmp_path / "x.json", labelme(bad, []))
    elif kind == "paddle":
        path = put(tmp_path / "x.txt", f"ok.jpg\t[]\n{bad}\t[]")
    else:
        if not bad:
            pytest.skip("an empty line of an id list is no id")
        sroie(tmp_path, [QUAD])
        path = put(tmp_path / "x.txt", f"000\n{bad}")
    with pytest.raises(UserError, match=r"image path|binary"):
        read(path)


@pytest.mark.parametrize(
    "name", ["/etc/passwd", "../x.jpg", "a/../../x.jpg", "..\\x.jpg", "C:\\x.jpg", "\\\\host\\x", "a\0.jpg", "\ud800"]
)
def test_annotation_paths_stay_in_their_folder(tmp_path, name):
    page = CONTEST["images"]["a.jpg"]
    (tmp_path / "data.json").write_text(json.dumps({"images": {name: page}}))
    with pytest.raises(UserError, match=r"absolute|leaves|NUL|half a character"):
        read_source(tmp_path / "data.json")
    (tmp_path / "labels.txt").write_bytes(f"{name}\t[]\n".encode("utf-8", "surrogatepass"))
    with pytest.raises(UserError):
        read_source(tmp_path / "labels.txt")


def test_findings_are_all_counted_and_the_first_of_each_kind_kept(monkeypatch):
    monkeypatch.setattr(page, "MOST_FINDINGS", 2)
    found = page.Findings(page.Finding("a", "orphan", str(k)) for k in range(3))
    found.append(page.Finding("a", "bad-line", "0"))
    other = page.Findings([page.Finding("b", "orphan", str(k)) for k in range(5)])
    found += other
    found += [page.Finding("c", "bad-line", "1")]
    assert found.counts == {"orphan": 8, "bad-line": 2}
    assert [(one.path, one.detail) for one in found] == [("a", "0"), ("a", "1"), ("a", "0"), ("c", "1")]
    assert page.Findings(found).counts == found.counts
