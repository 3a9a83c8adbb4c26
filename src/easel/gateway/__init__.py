"""The HTTP and WebSocket edge: authenticates, opens the doors (one module a protocol), never touches a GPU."""
