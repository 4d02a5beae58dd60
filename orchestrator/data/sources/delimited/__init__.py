"""Files of rows with a delimiter: tables and ratings, and what is written in their fields."""
