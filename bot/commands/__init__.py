"""Slash commands, with the buttons and forms that belong to them; one package for each group of commands."""
