"""What a checkpoint needs to live on the Hub: its card, its files, and proof that they work there."""
