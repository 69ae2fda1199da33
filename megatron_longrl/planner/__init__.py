"""The cost model, and the assignment of a batch's sequences to ranks. Pure arithmetic without
distributed code.
"""
