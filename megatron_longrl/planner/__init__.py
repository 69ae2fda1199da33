"""Costs of a batch on a layout, and the assignment of its parts to ranks: pure arithmetic without
distributed code.
"""
