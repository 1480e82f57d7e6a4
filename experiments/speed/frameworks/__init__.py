"""The comparison of frameworks, in the commands throughput, scaling, loading and device."""
