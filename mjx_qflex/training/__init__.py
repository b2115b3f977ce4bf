"""Training: the one scan that steps environments, writes the replay ring and learns."""
