"""The agent: runs tasks on the one ComfyUI beside it and serves the Function Compute agent API."""
