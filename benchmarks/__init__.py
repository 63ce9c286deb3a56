"""Measures the server and its workers against what the machine can do at best."""
