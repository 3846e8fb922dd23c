"""What the bot sends to Discord unasked: entries of the record as posts, and cards; each once, posts in order."""
