"""Where images and labels come from, who is in which split, and the batches made of them."""
