"""The networks and their techniques in plain PyTorch: no Ray, no object storage."""
