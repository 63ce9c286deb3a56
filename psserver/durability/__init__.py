"""What lasts: checkpoints, the log of pushes, and how a server comes back from them."""
