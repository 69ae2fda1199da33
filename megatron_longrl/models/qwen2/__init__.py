"""Qwen2 and Qwen2.5: text models with biases on the query, key and value projections."""
