"""Convert models to .nqz files and back."""
