"""Post-training quantization to int8 and fp16, one stage per file.

Judging accuracy is in toolkit/analysis.
"""
