"""Code that the schema compiler made; `make stubs` makes it again."""
