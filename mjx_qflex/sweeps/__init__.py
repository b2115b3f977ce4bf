"""Many runs from one file: read, run here, submitted to a cluster."""
