"""What members type and press: commands, buttons, forms, and what each answers."""
