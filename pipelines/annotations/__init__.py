"""Labels of other people's formats, read into pages. Comes in: files. Goes out: `page.Page` with polygons and flags."""
