"""The task: one submitted prompt with an id, an owner, a state, progress and a result. The only unit of work."""
