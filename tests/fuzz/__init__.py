"""Fuzzing: structured mutations of everything that EdgeKit reads from outside, with a committed corpus."""
