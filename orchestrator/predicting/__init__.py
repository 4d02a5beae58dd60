"""Predictions of many rows at once: what is read, what a model answers, and how the answers are stored."""
