"""A server and its workers in one thread, all of whose chance comes from one seed."""
