"""The built-in engine: ComfyUI's API and execution semantics over CPU image nodes."""
