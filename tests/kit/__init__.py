"""What tests break things with: a disk, a network, processes, and points to fail at."""
