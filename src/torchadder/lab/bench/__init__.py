"""Benchmarks against named rivals: same shapes, same threads, same run; medians of interleaved repetitions."""
