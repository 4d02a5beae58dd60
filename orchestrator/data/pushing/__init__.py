"""What a push does with rows: the passes over them, where those run, and in which order rows are written."""
