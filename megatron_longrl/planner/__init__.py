"""What a batch costs on a layout, and who does what of it: pure arithmetic, nothing distributed."""
