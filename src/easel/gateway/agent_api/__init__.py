"""The Function Compute agent API of every service, as tasks: ``/api/run``, ``/api/run/ws``, ``/api/status``, ``/api/outputs``."""
