"""Model families on megatron-core: a folder for each, with its settings, layers, layout of media
and weight mapping.
"""
