"""What a user looks at: the command line, trace, benchmarks, tuning and verification."""
