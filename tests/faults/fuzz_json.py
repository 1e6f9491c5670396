"""Valid documents of the JSON formats that annotation tools and other projects write, for `fuzz_targets`."""

import json
from typing import Any

QUAD = [[10, 10], [90, 10], [90, 30], [10, 30]]
FLAT = [10, 10, 90, 10, 90, 30, 10, 30]
CORNERS = {"x1": 10, "y1": 10, "x2": 90, "y2": 10, "x3": 90, "y3": 30, "x4": 10, "y4": 30}

MMOCR = {
    "metainfo": {"dataset_type": "TextDetDataset", "task_name": "textdet"},
    "data_list": [
        {
            "img_path": "a.jpg",
            "height": 80,
            "width": 100,
            "instances": [
                {"polygon": FLAT, "bbox": [10, 10, 90, 30], "bbox_label": 0, "ignore": False, "text": "x"},
                {"polygon": [[1, 2]], "bbox": [10, 10, 90, 30], "ignore": True},
            ],
        },
        {"img_path": "b.jpg", "instances": []},
    ],
}
DOCTR = {
    "a.jpg": {"img_dimensions": [80, 100], "img_hash": "0", "polygons": [QUAD, QUAD[:2]]},
    "b.jpg": {"img_dimensions": [80, 100], "polygons": {"words": [QUAD], "ignore": [QUAD]}},
}


def _region(name: str, **shape: Any) -> dict:
    return {"shape_attributes": {"name": name, **shape}, "region_attributes": {"text": "x", "marks": {"ignore": True}}}


_VIA_REGIONS = [
    _region("polygon", all_points_x=[10, 90, 90, 10], all_points_y=[10, 10, 30, 30]),
    _region("polyline", all_points_x=[10, 90, 90], all_points_y=[10, 10, 30]),
    _region("rect", x=10, y=10, width=50, height=20),
    _region("circle", cx=50, cy=40, r=20.5),
    _region("ellipse", cx=50, cy=40, rx=20, ry=10, theta=0.5),
    _region("point", cx=50, cy=40),
]
VIA = {
    "a.jpg12": {"filename": "a.jpg", "size": 12, "regions": _VIA_REGIONS, "file_attributes": {}},
    "b.jpg12": {"filename": "b.jpg", "size": 12, "regions": {"0": _VIA_REGIONS[2]}},
}
VIA_PROJECT = {"_via_settings": {"ui": {}}, "_via_img_metadata": VIA, "_via_attributes": {}}
_SIZE = {"original_width": 100, "original_height": 80, "image_rotation": 0}
_BOX = {"x": 10, "y": 10, "width": 50, "height": 20, "rotation": 30}
STUDIO = [
    {
        "id": 1,
        "data": {"ocr": "/data/upload/1/0a1b2c3d-a.jpg"},
        "annotations": [
            {
                "was_cancelled": False,
                "ground_truth": True,
                "result": [
                    {"id": "k", "type": "rectangle", **_SIZE, "value": _BOX},
                    {"id": "k", "type": "labels", **_SIZE, "value": {**_BOX, "labels": ["Text"]}},
                    {"id": "k", "type": "textarea", **_SIZE, "value": {**_BOX, "text": ["x"]}},
                    {"id": "m", **_SIZE, "value": {"points": [[1, 2], [30, 2], [30, 9]], "polygonlabels": ["Ignore"]}},
                    {"id": "n", **_SIZE, "value": {"x": 50, "y": 50, "radiusX": 9, "radiusY": 5, "rotation": 9}},
                ],
            }
        ],
    },
    {"id": 2, "data": {"image": "/data/local-files/?d=b.jpg"}, "annotations": []},
]
_WORD = {"quad": CORNERS, "is_key": 0, "row_id": 1, "text": "x"}
CORD = {
    "meta": {"image_size": {"width": 100, "height": 80}},
    "valid_line": [{"words": [_WORD, {**_WORD, "text": ""}], "category": "menu.nm"}],
    "dontcare": [[CORNERS]],
    "repeating_symbol": [[_WORD]],
}
FUNSD = {
    "form": [
        {
            "box": [10, 10, 90, 30],
            "text": "x",
            "label": "question",
            "words": [{"box": [10, 10, 40, 30], "text": "x"}, {"box": [40, 10, 90, 30], "text": ""}],
        },
        {"box": [10, 50, 90, 70], "text": "y", "words": []},
    ]
}
WILDRECEIPT = {
    "file_name": "a.jpg",
    "height": 80,
    "width": 100,
    "annotations": [{"box": FLAT, "text": "x", "label": 1}, {"box": FLAT, "text": "y", "label": 0}],
}
MMOCR_LINE = {
    "file_name": "b.jpg",
    "height": 80,
    "width": 100,
    "annotations": [{"iscrowd": 0, "category_id": 1, "bbox": [10, 10, 80, 20], "segmentation": [FLAT]}],
}
WHOLE = {"mmocr": MMOCR, "doctr": DOCTR, "via": VIA, "via project": VIA_PROJECT, "label studio": STUDIO}
PAGES = {"cord": CORD, "funsd": FUNSD}
LINES = {"wildreceipt": WILDRECEIPT, "mmocr lines": MMOCR_LINE}


def seeds() -> dict[str, bytes]:
    """A file of each."""
    made = {f"{name}.json": json.dumps(value).encode() for name, value in (WHOLE | PAGES).items()}
    return made | {name: f"{json.dumps(value)}\n".encode() for name, value in LINES.items()}
