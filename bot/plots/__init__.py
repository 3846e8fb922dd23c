"""The loss curves on cards, as PNG files: what they show, how they are drawn, and the process that draws them."""
