"""A loopback Hugging Face Hub."""
