"""Data: sources, tokenizer, prepared data folder, the order of rows, and which rows a step read."""
