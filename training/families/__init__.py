"""What several tasks have in common, so that each of them is one short file."""
