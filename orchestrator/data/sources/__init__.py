"""Readers of the data that people have, a file per format; `formats.py` lists them."""
