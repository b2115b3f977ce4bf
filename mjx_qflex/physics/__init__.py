"""What a physics step of a ported body computes; `porting` builds such bodies."""
