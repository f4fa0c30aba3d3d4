"""A report document as HTML, terminal tables, JUnit and Markdown.

toolkit/analysis computes the figures.
"""
