"""Pictures and pages: text that is both Markdown and HTML, curves, regions drawn on pages. No torch.

Comes in: figures, tables, images with regions. Goes out: JPEG, PNG, Markdown and HTML.
"""
