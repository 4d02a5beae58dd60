"""What is asked of a model and what it answers, between JSON and tensors; no Ray."""
