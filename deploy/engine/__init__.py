"""TensorRT engines: building one on its device, its passport, and the GPU that runs it."""
