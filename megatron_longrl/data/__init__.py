"""From rows of a data set to prompts, frames and batches."""
