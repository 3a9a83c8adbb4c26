"""The built-in engine's HTTP and WebSocket server: ComfyUI 0.3.64's routes over an `easel.engine.engine.Engine`.

``app.py`` puts it together; one module a family of routes. What differs from the real ComfyUI on purpose is listed in
docs/engine-deviations.md.
"""
