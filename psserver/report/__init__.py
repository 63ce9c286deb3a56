"""A run's report, made of its metrics file."""
