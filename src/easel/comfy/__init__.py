"""Talking to one ComfyUI server, and looking after its process."""
