"""How fast the trainer is, beside what people would otherwise use."""
