"""Drives everything: configuration, data, training, sweeps, deployment, and the command line."""
