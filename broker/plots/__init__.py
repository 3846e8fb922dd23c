"""The loss curves on cards, in answers and on model cards, as PNG files: what they show, and how they are drawn."""
