"""Model + batches -> importance of every unit of rank."""
