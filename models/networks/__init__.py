"""The networks, a file for each kind."""
