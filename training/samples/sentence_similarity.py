"""The help centre of ``search.py``."""

from training.samples.search import write_data

__all__ = ["write_data"]
