"""The agent link: what a gateway and an agent say to each other over one WebSocket. Pure: messages and their coding."""
