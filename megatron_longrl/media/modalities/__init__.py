"""The modalities: a folder each, with the decoder, the units and the layout of its media.

Nothing else in :mod:`megatron_longrl.media` imports them.
"""
