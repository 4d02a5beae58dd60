"""Appending rows to a version of a dataset: they are read by its rules, and its shards go on being used."""
