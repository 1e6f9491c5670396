"""Files that an earlier commit wrote, and how they were made."""
