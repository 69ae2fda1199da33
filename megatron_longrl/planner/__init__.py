"""What a batch costs on a layout, before it runs: pure arithmetic, nothing distributed."""
