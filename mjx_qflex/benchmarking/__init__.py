"""What `python -m mjx_qflex.benchmark` measures, and the peers that it measures against."""
