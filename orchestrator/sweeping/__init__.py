"""Arms times seeds: what a sweep consists of, and the lanes that train it."""
