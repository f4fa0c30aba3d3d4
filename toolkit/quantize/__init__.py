"""Post-training quantization to int8 and fp16, one stage per file.

toolkit/analysis judges the accuracy.
"""
