"""What tests are made with: what things break with, and values to begin from."""
