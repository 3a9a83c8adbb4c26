"""Data directories, and how names from outside become paths."""
