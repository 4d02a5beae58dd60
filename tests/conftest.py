"""Fixtures shared by every test: nothing of the user's machine leaks in, and the servers are started once."""
