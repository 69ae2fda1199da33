"""Llama 2 and 3: text models without biases, and without a scaled rotary embedding."""
