"""The benchmarks, an adapter each."""
