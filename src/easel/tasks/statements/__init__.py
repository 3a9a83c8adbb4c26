"""The hot path's SQL, by name, one module a dialect."""
