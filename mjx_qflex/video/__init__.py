"""Films of episodes and motions."""
