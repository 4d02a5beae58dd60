"""What holds for this process alone: its environment, its loggers, and what its command line was given."""
