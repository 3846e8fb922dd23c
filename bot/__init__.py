"""The face on Discord: commands, forms, cards, charts, and the delivery of entries as posts. Holds no rules."""
