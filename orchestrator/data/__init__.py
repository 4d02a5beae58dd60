"""Datasets: what people have goes in as Parquet shards, and comes out as batches in a deterministic order."""
