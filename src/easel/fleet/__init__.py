"""The instances: brought in line with what is wanted, connected by the agent link, given tasks."""
