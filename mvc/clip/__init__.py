"""CLIP models of open_clip: their data, models, contrastive training, retrieval and zero-shot classification."""
