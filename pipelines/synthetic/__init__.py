"""Receipts that are drawn: text, fonts, paper, labels. For the demo, tests and benches, from a seed alone."""
