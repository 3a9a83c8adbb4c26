"""Being an instance of a platform: the agent's end of the agent link (`easel.link.messages`)."""
