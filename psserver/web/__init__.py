"""The HTTP port: the live page, and what scripts and Prometheus read."""
