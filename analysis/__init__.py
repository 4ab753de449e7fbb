"""What a trained network has learnt, in figures: where it looks, and how alike its channels are."""
