"""What a checkpoint can do: evaluate it, score a text with it, let it write one."""
