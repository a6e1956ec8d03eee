"""From a recipe to a better recipe: search spaces, trials, results."""
