"""Many sources to one clean, split table: landing, the fuse statement, cleaning, splitting, the report."""
