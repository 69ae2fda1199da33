"""Images, as Pillow reads them."""
