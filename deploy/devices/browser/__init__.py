"""Browsers on phones and computers."""
