"""Networks: where a base comes from, which of its weights learn, and what stands on it."""
