"""Benchmarks: `python -m benchmarks.<name>`; RESULTS.md has what they said, where and when."""
