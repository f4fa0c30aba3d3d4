"""A report document as HTML, terminal tables, JUnit and Markdown.

The figures themselves are made in toolkit/analysis.
"""
