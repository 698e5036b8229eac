"""The triplet adapter dW = P diag(λ) Q as a PEFT LoRA layer, its path context and its regulariser."""
