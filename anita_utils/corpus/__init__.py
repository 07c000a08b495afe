"""Training text out of a folder of files: read, sieved, cut into rows, and written with its counts and a card."""
