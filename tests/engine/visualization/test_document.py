"""visualization.document: blocks as Markdown and as HTML."""

from PIL import Image

from engine.visualization.document import Code, Figure, Items, Link, Table, Text, to_html, to_markdown


def test_blocks_in_both_forms(tmp_path):
    picture = tmp_path / "figures" / "a b.png"
    picture.parent.mkdir()
    Image.new("RGB", (4, 4)).save(picture)
    table = Table(["name", "value"], [[Link("7", "trials/0 07"), "1.5"], ["x", "2"]], strong=0)
    blocks = [Text("1. a_b"), Items(["- c", "d"]), table, Figure(picture, "seen"), Code("x < y")]
    assert to_markdown("t", blocks, tmp_path) == (
        "# t\n\n\\1. a_b\n\n- \\- c\n- d\n\n| name | value |\n|:--|--:|\n"
        "| **[7](trials/0%2007)** | **1.5** |\n| x | 2 |\n\n"
        "![a b](figures/a%20b.png)\n\nseen\n\n```\nx < y\n```\n"
    )
    html = to_html("t", blocks)
    assert '<tr class="strong"><td class="text"><a href="trials/0%2007">7</a></td><td>1.5</td></tr>' in html
    assert "<pre>x &lt; y</pre>" in html


def test_links_to_files_of_any_name():
    page = to_html("t", [Table(["page"], [[Link("x", "a\udc80#.jpg")], [Link("y", "", "page-1")]])])
    assert 'href="a%80%23.jpg"' in page and 'href="#page-1"' in page
