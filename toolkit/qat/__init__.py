"""Quantization-aware training: fine-tune the weights of an int8 graph that toolkit/quantize wrote.

The loop is in toolkit/training, the rules of quantization and the judgement in toolkit/quantize.
"""
