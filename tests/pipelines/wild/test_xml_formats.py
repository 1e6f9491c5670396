"""XML annotations: CVAT for images, PASCAL VOC, CTW1500; and XML that is none, or an attack."""

import pytest
from wild_text import SIZE, judge, outlines, pages_of, refusal

from tests.support.annotation_files import picture, put

CVAT = """<?xml version="1.0" encoding="utf-8"?>
<annotations>
  <version>1.1</version>
  <meta><task><name>t</name><labels><label><name>text</name></label></labels></task></meta>
  <image id="0" name="a.jpg" width="640" height="480">
    <box label="text" source="manual" occluded="0" xtl="10" ytl="20" xbr="110" ybr="40" z_order="0">
      <attribute name="transcription">TOTAL &amp; SUM</attribute>
    </box>
    <polygon label="text" occluded="0" points="10.0,60.0;110.0,60.0;110.0,80.0;10.0,80.0">
      <attribute name="transcription">###</attribute>
    </polygon>
    <box label="text" xtl="200" ytl="100" xbr="300" ybr="140" rotation="90.0"></box>
    <polyline label="text" points="10,100;60,90;110,100;110,120;60,110;10,120"></polyline>
    <polygon label="text" points="10,200;50,200;50,220"><attribute name="difficult">true</attribute></polygon>
    <tag label="indoor"></tag>
  </image>
  <image id="1" name="sub/b.jpg" width="640" height="480">
    <box label="ignore" xtl="10" ytl="20" xbr="110" ybr="40"></box>
    <box label="text" xtl="10" ytl="50" xbr="110" ybr="70"><attribute name="illegible">false</attribute></box>
  </image>
</annotations>
"""


def cvat(folder, text=CVAT):
    """CVAT's zip of `CVAT for images 1.1`: annotations.xml beside images/."""
    for name in ("a.jpg", "sub/b.jpg"):
        picture(folder / "images" / name, SIZE)
    return put(folder / "annotations.xml", text)


@pytest.mark.parametrize("format", ["auto", "cvat"])
def test_cvat_for_images(tmp_path, format):
    path = cvat(tmp_path / "set")
    for source in (path, path.parent):
        report, index = judge(source, format)
        assert index.format == "cvat" and [index.relative_path(i) for i in (0, 1)] == ["a.jpg", "sub/b.jpg"]
        assert outlines(index)[0] == [[10, 20], [110, 20], [110, 40], [10, 40]]
        assert outlines(index)[2] == [[270, 70], [270, 170], [230, 170], [230, 70]]
        assert index.ignore(0).tolist() == [False, True, False, False, True]
        assert report.counts["categories"] == 1
        assert index.ignore(1).tolist() == [True, False] and index.texts(0)[:2] == ["TOTAL & SUM", "###"]


def test_cvat_shapes_without_an_outline_are_masked_or_boxed(tmp_path):
    shapes = (
        '<polyline label="text" points="300,300;400,300"></polyline><points label="text" points="500,50"></points>'
        '<mask label="text" rle="1,2" left="300" top="20" width="50" height="10"></mask>'
        '<polygon label="text" points="300,400;x,410;350,420;400,nan;340,440"></polygon>'
        '<ellipse label="text" cx="500" cy="200" rx="20" ry="10"></ellipse>'
    )
    _, index = judge(cvat(tmp_path / "set", CVAT.replace("    <tag", shapes + "<tag")))
    assert index.ignore(0).tolist()[5:] == [True, True, False, True, False] and index.counts["masked"] == 3
    assert outlines(index)[7] == [[300, 20], [350, 20], [350, 30], [300, 30]]


def test_a_cvat_shape_that_lies_nowhere_refuses_its_page(tmp_path):
    broken = CVAT.replace('xtl="200" ytl="100" xbr="300" ybr="140"', 'xtl="" ytl="" xbr="" ybr=""')
    assert "a.jpg: nowhere (region 3 has no coordinates" in refusal(cvat(tmp_path / "set", broken))


def test_cvat_for_video_is_refused(tmp_path):
    box = '<box frame="0" xtl="1" ytl="1" xbr="2" ybr="2"/>'
    track = f'<annotations><track id="0" label="text">{box}</track></annotations>'
    assert "export the task as `CVAT for images 1.1`" in refusal(cvat(tmp_path / "set", track))


def test_one_cvat_image_twice_is_refused(tmp_path):
    assert "a second time" in refusal(cvat(tmp_path / "set", CVAT.replace("sub/b.jpg", "a.jpg")))


VOC = """<annotation>
  <folder>images</folder><filename>{name}.jpg</filename>
  <size><width>640</width><height>480</height><depth>3</depth></size>
  <object><name>text</name><pose>Unspecified</pose><truncated>0</truncated><difficult>0</difficult>
    <bndbox><xmin>10</xmin><ymin>20</ymin><xmax>110</xmax><ymax>40</ymax></bndbox></object>
  <object><name>text</name><difficult>1</difficult>
    <bndbox><xmin>10</xmin><ymin>60</ymin><xmax>110</xmax><ymax>80</ymax></bndbox></object>
  <object><type>robndbox</type><name>text</name><difficult>0</difficult>
    <robndbox><cx>250</cx><cy>120</cy><w>100</w><h>40</h><angle>1.5707963</angle></robndbox></object>
</annotation>
"""


@pytest.mark.parametrize("labels", ["annotations", "Annotations", "."])
def test_pascal_voc(tmp_path, labels):
    # labelImg, roLabelImg: one XML an image, beside it or in Annotations/
    texts = [VOC.format(name=name) for name in "ab"]
    folder = pages_of(tmp_path / "set", *texts, images="images" if labels != "." else ".", labels=labels, suffix=".xml")
    _, index = judge(folder)
    assert index.format == "voc" and index.ignore(0).tolist() == [False, True, False] and index.texts(0) is None
    assert outlines(index)[0] == [[10, 20], [110, 20], [110, 40], [10, 40]]
    assert outlines(index)[2] == [[270, 70], [270, 170], [230, 170], [230, 70]]


def test_a_voc_object_with_half_a_box_is_masked(tmp_path):
    lost = VOC.replace("<xmax>110</xmax><ymax>40</ymax>", "<xmax></xmax><ymax>40</ymax>")
    report, index = judge(pages_of(tmp_path / "set", lost, VOC, labels="labels", suffix=".xml"))
    assert report.counts["masked"] == 1 and index.ignore(0).tolist() == [True, True, False]


def test_a_voc_object_without_a_box_refuses_its_page(tmp_path):
    lost = VOC.replace("<bndbox><xmin>10</xmin><ymin>20</ymin><xmax>110</xmax><ymax>40</ymax></bndbox>", "")
    assert "nowhere" in refusal(pages_of(tmp_path / "set", lost, VOC, labels="labels", suffix=".xml"))


CTW = """<Annotations>
 <image file="0200.jpg">
  <box height="197" left="131" top="49" width="399">
   <label>OLATHE</label>
   <segs>131,58,208,49,279,56,346,76,412,101,473,141,530,192,510,246,458,210,405,175,350,151,291,137,228,133,165,134</segs>
   <pts x="183" y="95" /><pts x="251" y="89" />
  </box>
  <box height="30" left="10" top="300" width="100"><label>###</label><segs></segs></box>
  <box height="30" left="10" top="400" width="100"><label>BOX</label></box>
 </image>
</Annotations>
"""


@pytest.mark.parametrize("format", ["auto", "ctw1500"])
def test_ctw1500_xml(tmp_path, format):
    # SCUT-CTW1500, training labels of 2020: segs are 14 points, pts the middles of the letters
    folder = tmp_path / "set"
    for name in ("0200", "0201"):
        picture(folder / "train_images" / f"{name}.jpg", SIZE)
        put(folder / "ctw1500_train_labels" / f"{name}.xml", CTW)
    _, index = judge(folder, format)
    assert index.format == "ctw1500" and index.texts(0) == ["OLATHE", "###", "BOX"]
    assert len(outlines(index)[0]) == 14 and index.ignore(0).tolist() == [False, True, False]
    assert outlines(index)[2] == [[10, 400], [110, 400], [110, 430], [10, 430]] and index.counts["boxed"] == 4


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('<!DOCTYPE a [<!ENTITY e "x">]><annotations><image name="a.jpg">&e;</image></annotations>', "DTD"),
        ('<!DOCTYPE annotations SYSTEM "file:///etc/passwd"><annotations></annotations>', "DTD"),
        ("<annotations><image name='a.jpg'></annotations>", "not valid XML"),
        ("", "not valid XML"),
        ("<annotations>&unknown;</annotations>", "not valid XML"),
        ("<html><body></body></html>", "XML of <html>"),
        ("<annotations></annotations>", "no pages"),
        ("<annotations>" + "<a>" * 100 + "</a>" * 100 + "</annotations>", "nested more than"),
        ("<annotations><image name='../a.jpg'/></annotations>", "leaves the image folder"),
        (VOC, "one page; name the folder"),
    ],
)
def test_xml_that_is_refused(tmp_path, text, words):
    assert words in refusal(cvat(tmp_path / "set", text))


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "iso-8859-1"])
def test_encodings_of_xml(tmp_path, encoding):
    path = cvat(tmp_path / "set", "")
    head = 'encoding="utf-8"' if encoding == "utf-8-sig" else f'encoding="{encoding}"'
    path.write_bytes(CVAT.replace('encoding="utf-8"', head).replace("TOTAL", "T\u00d6TAL").encode(encoding))
    assert judge(path)[1].texts(0)[0] == "T\u00d6TAL & SUM"


def test_text_and_xml_labels_in_one_set_are_refused(tmp_path):
    folder = pages_of(tmp_path / "set", VOC, VOC, suffix=".xml")
    picture(folder / "img" / "c.jpg", SIZE)
    put(folder / "gt" / "c.txt", "10,20,110,20,110,40,10,40,A")
    assert "2 of 3 pages have an XML file" in refusal(folder)


def test_voc_asked_for_text_files_and_the_other_way_round(tmp_path):
    assert "no XML" in refusal(pages_of(tmp_path / "a", "10,20,110,20,110,40,10,40", ""), "voc")
    assert "XML files are voc" in refusal(pages_of(tmp_path / "b", VOC, VOC, suffix=".xml"), "icdar")
