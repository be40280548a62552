"""Practice: data, training, checkpoints, sampling, metrics."""
