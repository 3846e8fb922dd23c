"""Text to rows of tokens: sources, tokenizer, prepared folder, order, and what a step saw."""
