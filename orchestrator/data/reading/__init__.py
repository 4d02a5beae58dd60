"""From a dataset in the store to the batches of a training."""
