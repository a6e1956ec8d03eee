"""From a model to answers: predictor, scheduler, edge, and the Ray Serve host."""
