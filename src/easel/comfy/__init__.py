"""Talking to one ComfyUI server, and looking after its process.

Talking: `connection` (submit prompts, each a `run` with its events and its `outcome`), over `client` (HTTP: `body`, `answers`,
`refusals`) and `event_socket` (`events`); `in_flight` says whose a message is, `following` and `ending` how a prompt ended.
Looking after: `process` (states, restarts), over `child` (one process, through the `launcher`), `liveness`, `log_tail`, `ended`.
"""
