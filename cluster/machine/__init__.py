"""This machine: the servers that `up` starts on it, and the folder in which everything is kept."""
