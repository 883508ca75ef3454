"""Engines that run a graph on the tensors of a file; each is imported when it is chosen."""
