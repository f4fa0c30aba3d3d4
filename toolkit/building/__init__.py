"""Building TensorRT engines from ONNX bundles: checks of the graph, precisions, trtexec command lines.

The build on the device itself is in deploy/engine.
"""
