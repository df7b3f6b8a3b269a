"""Measure against named baselines: same shapes, same threads, same run; medians of interleaved repetitions."""
