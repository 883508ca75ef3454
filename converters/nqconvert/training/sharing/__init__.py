"""Weight sharing: training with few distinct values."""
