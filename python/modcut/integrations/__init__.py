"""The modularity loss in other people's training loops: Hugging Face Trainer, Lightning, several processes."""
