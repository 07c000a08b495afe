"""Measuring models: benchmarks, judges of answers, and what each metric means."""
