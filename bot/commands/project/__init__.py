"""`/project …`: commands, forms and buttons about projects."""
