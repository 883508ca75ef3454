"""Label-free repairs of a quantized network on its calibration inputs."""
