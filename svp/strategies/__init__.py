"""Strategies: which items to label next.

`svp.strategies.base` is the interface, `svp.strategies.catalog` the list of them and the one way
to run them; every strategy has a file of its own.
"""
