"""The folder of compiled TensorRT engines."""
