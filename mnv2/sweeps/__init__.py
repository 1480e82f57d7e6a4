"""Many runs: planned, executed, reported."""
