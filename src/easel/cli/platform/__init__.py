"""The commands for a platform: what is deployed, how it does, and using it."""
