"""What staleness does to a push: pure functions, each with its source."""
