"""Services: what is deployed, in which edition, from which specification, in which revision."""
