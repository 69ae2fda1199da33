"""How processes end: signals that ask a run to save, and what ends with the process that started
it.
"""
