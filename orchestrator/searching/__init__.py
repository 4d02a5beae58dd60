"""The search for the best model: its records, its space and its trials."""
