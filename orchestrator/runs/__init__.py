"""What is known of a run: its records in the store, and the pulse of the process that trains."""
