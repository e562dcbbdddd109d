"""Fine-tune the diffusion model on same-class pairs with mixed captions."""
