"""Recipes from data to a .nqz file, one for each row of the papers' tables."""
