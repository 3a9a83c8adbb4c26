"""Easel turns ComfyUI into a service."""

__version__ = "0.1.0"
