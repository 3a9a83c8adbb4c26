"""Where instances run: one module for each kind of runtime."""
