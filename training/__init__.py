"""From data to a model: fuse, encode, train, evaluate, bundle, register."""
