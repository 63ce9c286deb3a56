"""The contract between server and workers: messages, their codec, values, errors."""
