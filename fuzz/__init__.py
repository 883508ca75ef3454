"""Hostile input for the readers: golden files, mutators, a runner and a coverage-guided target."""
