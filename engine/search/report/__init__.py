"""What a study has shown: findings, effects, repeats, figures, written as Markdown and HTML."""
