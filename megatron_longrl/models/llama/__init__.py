"""Llama 2 and 3: text models without biases on their projections."""
