"""What commands print that takes more than a line: tables, progress, and what is known of runs."""
