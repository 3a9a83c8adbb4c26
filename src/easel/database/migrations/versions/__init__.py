"""The changes of the tables, in order. Each stays as it is once it was released."""
