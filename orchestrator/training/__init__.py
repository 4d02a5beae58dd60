"""What a worker runs: PyTorch, no Ray."""
