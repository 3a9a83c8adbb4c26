"""The prompt, and what can be known of it without running it. Pure: nothing here does I/O."""
