"""Quantization-aware retraining: the network learns with the weights that the file will hold."""
