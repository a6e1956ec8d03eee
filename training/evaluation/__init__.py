"""How good a model is: metrics, baselines that it must beat, and a report that one looks at."""
