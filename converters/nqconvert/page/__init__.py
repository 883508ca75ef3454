"""A page about a .nqz file: what it holds, where its bytes go, how its values lie."""
