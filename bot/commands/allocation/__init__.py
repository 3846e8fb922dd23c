"""`/allocation …`: commands, forms and buttons about compute."""
