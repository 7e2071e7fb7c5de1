"""Speed: the whole line and the training loop, timed side by side with plain code."""
