"""From an image file to the network's input: decoding, corruptions, preprocessing, views."""
