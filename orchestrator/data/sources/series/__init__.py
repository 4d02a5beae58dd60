"""Series: rows in time, of one or of many, with dates as people write them."""
