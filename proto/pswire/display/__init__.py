"""A status as a person reads it on a terminal."""
