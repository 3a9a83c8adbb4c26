"""The platform as one process: database, tasks, fleet, gateway and controller put together (`easel up`)."""
