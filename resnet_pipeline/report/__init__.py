"""What is shown of finished runs: the one-page report, model cards, the error explorer, tables and progress.

Import from the modules: a table on the terminal needs no drawing of curves.
"""
