"""Fuzzing: structured mutations of all that EdgeKit reads from outside, over a kept corpus."""
