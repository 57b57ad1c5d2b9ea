"""What a classifier has learned, measured on splits that training never sees."""
