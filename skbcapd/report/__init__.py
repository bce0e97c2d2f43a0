"""A report about captures: one HTML page, which opens without a network."""
