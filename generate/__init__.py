"""Make the synthetic set with the fine-tuned and the pre-trained model."""
