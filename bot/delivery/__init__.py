"""What is sent to Discord unasked: posts of the record and cards, each once and in order."""
