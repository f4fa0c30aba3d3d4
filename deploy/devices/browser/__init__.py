"""A phone's or computer's browser."""
