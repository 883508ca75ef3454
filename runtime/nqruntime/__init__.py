"""Running the networks in .nqz files."""
