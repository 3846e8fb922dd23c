"""Views of the current state: cards, and the pictures on them."""
