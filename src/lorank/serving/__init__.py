"""From a trained adapter to one that is served: what each engine makes of its files, export, verification."""
