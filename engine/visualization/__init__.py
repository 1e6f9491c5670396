"""Pictures and pages: text that is both Markdown and HTML, curves, regions drawn on pages. No torch."""
