"""`/allocation …`: commands, forms and buttons about GPU time."""
