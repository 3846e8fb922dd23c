"""`/run …`: commands, forms and buttons about runs."""
