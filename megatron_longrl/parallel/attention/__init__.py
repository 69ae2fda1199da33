"""Masked attention over sharded sequences, for core's ``core_attention`` slot.

Which token sees which is said by coordinates (:mod:`.tree_mask`): causal, packed, or tree-shaped
(several responses behind one prompt). Short sequences take plain products under a dense mask
(:mod:`.dense`), long ones blocks of flash attention merged by log-sum-exp (:mod:`.blocks`). Between
the ranks that share a sequence, keys and values are gathered (:mod:`.all_gather`), exchanged for
heads (:mod:`.all_to_all`) or passed around a ring (:mod:`.ring`). Only :mod:`.module` knows core.
"""
