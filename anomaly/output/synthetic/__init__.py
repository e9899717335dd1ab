"""Inspection photographs drawn by numpy: for the embedded checkpoint, the demo and the tests."""
