"""Post-training quantization with error feedback through full layer Hessians (method ``obs``)."""
