"""The server's figures: measured, sampled, shown to Prometheus and other trackers."""
