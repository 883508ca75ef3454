"""ONNX graphs: scopes, hoisting, batch-norm folding, binding of weights, slimming, running."""
